"""Architecture, size and scale from the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dp_basicsr.archs import load_network
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet

from tests.support.networks import make_network

IMAGE = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("arch", "scale", "growth"),
    [
        ("RRDBNetDP", 2, 8), ("RRDBNetDP", 3, 8), ("RRDBNetDP", 4, 8), ("RRDBNetDP", 4, 32),
        ("RRDBNet", 1, 8), ("RRDBNet", 2, 8), ("MSRResNet", 2, 0), ("MSRResNet", 3, 0), ("MSRResNet", 4, 0),
    ],
)  # fmt: skip
def test_spec_is_found_and_the_function_is_the_same(arch: str, scale: int, growth: int) -> None:
    net = make_network(arch, scale, num_feat=8, num_grow_ch=growth)
    torch.save({"params": net.state_dict()}, "net.pth")
    told = scale if arch == "RRDBNetDP" and scale < 4 else None
    loaded = load_network([Path("net.pth")], scale=told)
    assert (loaded.arch, loaded.scale, loaded.channels) == (arch, scale, 3)
    assert loaded.arguments == {"num_feat": 8, "num_block": 2, **({"num_grow_ch": growth} if growth else {})}
    assert loaded.size.multiple == ({1: 4, 2: 2}[scale] if arch == "RRDBNet" else 1)
    assert not loaded.module.training
    assert torch.equal(loaded.module(IMAGE), net(IMAGE))
    assert loaded.module(IMAGE).shape == (2, 3, 8 * scale, 12 * scale)


def test_basicsrs_own_rrdbnet_is_read() -> None:
    net = RRDBNet(3, 3, scale=4, num_feat=12, num_block=3, num_grow_ch=6).eval()
    torch.save({"params_ema": net.state_dict()}, "net.pth")
    loaded = load_network([Path("net.pth")])
    assert loaded.description == "RRDBNetDP x4 (3 blocks, 12 features, growth 6)"
    assert torch.equal(loaded.module(IMAGE), net(IMAGE))


def test_x2_or_x3_is_asked_for_unless_something_tells(network_file: Callable[..., Path], tmp_path: Path) -> None:
    path = network_file(scale=3)
    with pytest.raises(UserError, match="neither the file nor an option file .* give --scale 2 or --scale 3"):
        load_network([path])
    assert load_network([path], scale=2).scale == 2
    run = tmp_path / "experiments" / "x3"
    (run / "models").mkdir(parents=True)
    (run / "train.yml").write_text(
        "{name: x3, model_type: M, scale: 3, num_gpu: 0, datasets: {}, network_g: {type: RRDBNetDP, scale: 3}}"
    )
    moved = path.rename(run / "models" / "net_g_500.pth")
    assert load_network([moved]).scale == 3


def test_a_scale_that_contradicts_the_weights_is_refused(network_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--scale 2: .* is RRDBNetDP x4 .*; the size of the result is --outscale"):
        load_network([network_file(scale=4)], scale=2)


def test_a_discriminator_is_refused_and_a_gray_network_opens() -> None:
    torch.save({"params": {"conv0_0.weight": torch.ones(4, 3, 3, 3)}}, "net_d.pth")
    with pytest.raises(UserError, match="expected a super-resolution network .* such as conv0_0.weight"):
        load_network([Path("net_d.pth")])
    gray = RRDBNet(1, 1, scale=4, num_feat=4, num_block=1, num_grow_ch=4)
    torch.save(gray.state_dict(), "gray.pth")
    opened = load_network([Path("gray.pth")])
    assert opened.channels == 1
    x = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(opened.module(x), gray(x))
