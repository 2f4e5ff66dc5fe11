"""The generators: names, random numbers and outputs of BasicSR's, to the last bit, and what differs."""

from __future__ import annotations

from typing import Any

from dp_basicsr.archs import CompactDP, RRDBNetDP
from dp_basicsr.archs.blocks import MSRResNet
from dp_basicsr.archs.rrdbnet_dp_arch import FoldedRRDBNet
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet as TheirMSRResNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from tests.support.gpu import on_device

pytestmark = pytest.mark.usefixtures("device")

SMALL = {"num_feat": 4, "num_block": 2}
GROWTH = SMALL | {"num_grow_ch": 2}
CONVS = {"num_feat": 4, "num_conv": 2}


@pytest.mark.parametrize(
    ("ours", "theirs", "channels", "starts_like_it"),
    [
        (lambda: RRDBNetDP(3, 3, 4, **GROWTH), lambda: RRDBNet(3, 3, 4, **GROWTH), 3, True),
        (lambda: FoldedRRDBNet(3, 2, **GROWTH), lambda: RRDBNet(3, 3, 2, **GROWTH), 3, True),
        (lambda: FoldedRRDBNet(1, 1, **GROWTH), lambda: RRDBNet(1, 1, 1, **GROWTH), 1, True),
        *((lambda scale=scale: MSRResNet(3, 3, **SMALL, upscale=scale),
           lambda scale=scale: TheirMSRResNet(3, 3, **SMALL, upscale=scale), 3, True) for scale in (2, 3, 4)),
        *((lambda scale=scale: CompactDP(3, 3, **CONVS, upscale=scale),
           lambda scale=scale: SRVGGNetCompact(3, 3, **CONVS, upscale=scale), 3, False) for scale in (2, 3)),
        (lambda: CompactDP(1, 1, **CONVS), lambda: SRVGGNetCompact(1, 1, **CONVS), 1, False),
    ],
    ids=["x4", "x2 folded", "x1 folded", *(f"MSRResNet x{scale}" for scale in (2, 3, 4)), "Compact x2", "Compact x3",
         "Compact gray"],
)  # fmt: skip
def test_they_are_basicsrs(ours: Any, theirs: Any, channels: int, starts_like_it: bool) -> None:
    torch.manual_seed(0)
    net = ours()
    torch.manual_seed(0)
    reference = theirs()
    state, expected = net.state_dict(), reference.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected) == starts_like_it
    reference.load_state_dict(state)
    image = on_device(torch.rand(2, channels, 8, 12))
    assert torch.equal(on_device(net)(image), on_device(reference)(image))


@pytest.mark.parametrize(("scale", "convolutions"), [(2, 1), (3, 1), (4, 2)])
def test_rrdbnet_has_the_blocks_of_its_scale(scale: int, convolutions: int) -> None:
    net = on_device(RRDBNetDP(scale=scale, **GROWTH))
    assert net(on_device(torch.rand(2, 3, 5, 6))).shape == (2, 3, 5 * scale, 6 * scale)
    assert len([name for name in net.state_dict() if name.startswith("conv_up") and "weight" in name]) == convolutions


def test_an_unsupported_scale_is_refused() -> None:
    with pytest.raises(UserError, match=r"2, 3, 4.*5"):
        RRDBNetDP(scale=5)


def test_the_start_of_compact_keeps_the_size_of_the_features() -> None:
    torch.manual_seed(0)
    net = CompactDP()
    features = [torch.rand(1, 3, 16, 16)]
    for layer in net.body[:-1]:
        features.append(layer(features[-1]))
    ratio = float((features[-1].std() / features[2].std()).detach())
    assert 0.1 < ratio < 10, ratio
    inner = [module for module in net.body if isinstance(module, torch.nn.Conv2d)][1:-1]
    drawn = torch.stack([module.weight for module in inner])
    drawn[..., 1, 1] -= torch.eye(64)
    assert float(drawn.detach().std()) == pytest.approx(0.3 * (2 / (9 * 64)) ** 0.5, rel=0.02)
