"""The generators: names, random numbers and outputs of BasicSR's, to the last bit, and what differs."""

from __future__ import annotations

from typing import Any

from dp_basicsr.archs import CompactDP, RRDBNetDP
from dp_basicsr.archs.blocks import MSRResNet, to_channels_last
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


# Name -> our class and BasicSR's, both of channels and scale.
PAIRS: dict[str, tuple[Any, Any]] = {
    "RRDBNetDP": (lambda c, x: RRDBNetDP(c, c, x, **GROWTH), lambda c, x: RRDBNet(c, c, x, **GROWTH)),
    "folded": (lambda c, x: FoldedRRDBNet(c, x, **GROWTH), lambda c, x: RRDBNet(c, c, x, **GROWTH)),
    "MSRResNet": (lambda c, x: MSRResNet(c, c, **SMALL, upscale=x),
                  lambda c, x: TheirMSRResNet(c, c, **SMALL, upscale=x)),
    "Compact": (lambda c, x: CompactDP(c, c, **CONVS, upscale=x),
                lambda c, x: SRVGGNetCompact(c, c, **CONVS, upscale=x)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "channels", "scale"),
    [("RRDBNetDP", 3, 4), ("folded", 3, 2), ("folded", 1, 1), ("MSRResNet", 3, 2), ("MSRResNet", 3, 3),
     ("MSRResNet", 3, 4), ("Compact", 3, 2), ("Compact", 3, 3), ("Compact", 1, 4)],
)  # fmt: skip
def test_they_are_basicsrs(name: str, channels: int, scale: int) -> None:
    nets = []
    for make in PAIRS[name]:
        torch.manual_seed(0)
        nets.append(make(channels, scale))
    net, reference = nets
    state, expected = net.state_dict(), reference.state_dict()
    assert list(state) == list(expected)
    starts_like_it = name != "Compact"
    assert all(torch.equal(state[key], expected[key]) for key in expected) == starts_like_it
    reference.load_state_dict(state)
    image = on_device(torch.rand(2, channels, 8, 12))
    assert torch.equal(on_device(net)(image), on_device(reference)(image))


def test_rrdbnet_has_the_blocks_of_its_scale() -> None:
    for scale, convolutions in ((2, 1), (3, 1), (4, 2)):
        net = on_device(RRDBNetDP(scale=scale, **GROWTH))
        assert net(on_device(torch.rand(2, 3, 5, 6))).shape == (2, 3, 5 * scale, 6 * scale)
        names = [name for name in net.state_dict() if name.startswith("conv_up") and "weight" in name]
        assert len(names) == convolutions
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


def test_weights_of_any_rank_may_be_stored_channels_last() -> None:
    """FFTformer's of rank 5 ended upscaling and training in a traceback."""
    net = torch.nn.Conv2d(4, 4, 3)
    net.volume = torch.nn.Parameter(torch.rand(2, 1, 1, 3, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    to_channels_last(net)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
