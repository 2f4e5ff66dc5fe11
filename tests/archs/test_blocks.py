"""The generators without BasicSR: the same names, random numbers and outputs as BasicSR's, to the last bit."""

from __future__ import annotations

from typing import Any

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.archs.blocks import MSRResNet
from dp_basicsr.archs.rrdbnet_dp_arch import FoldedRRDBNet

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet as TheirMSRResNet

SMALL = {"num_feat": 4, "num_block": 2}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: RRDBNetDP(3, 3, 4, num_grow_ch=2, **SMALL), lambda: RRDBNet(3, 3, 4, num_grow_ch=2, **SMALL)),
        (lambda: FoldedRRDBNet(3, 2, num_grow_ch=2, **SMALL), lambda: RRDBNet(3, 3, 2, num_grow_ch=2, **SMALL)),
        (lambda: FoldedRRDBNet(1, 1, num_grow_ch=2, **SMALL), lambda: RRDBNet(1, 1, 1, num_grow_ch=2, **SMALL)),
        *((lambda scale=scale: MSRResNet(3, 3, **SMALL, upscale=scale),
           lambda scale=scale: TheirMSRResNet(3, 3, **SMALL, upscale=scale)) for scale in (2, 3, 4)),
    ],
    ids=["x4", "x2 folded", "x1 folded", "MSRResNet x2", "MSRResNet x3", "MSRResNet x4"],
)  # fmt: skip
def test_they_are_basicsrs(ours: Any, theirs: Any) -> None:
    torch.manual_seed(0)
    net = ours()
    torch.manual_seed(0)
    reference = theirs()
    state, expected = net.state_dict(), reference.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    image = torch.rand(2, net.conv_last.out_channels, 8, 12)
    assert torch.equal(net(image), reference(image))
