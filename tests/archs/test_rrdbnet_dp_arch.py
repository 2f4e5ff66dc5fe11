"""RRDBNetDP against BasicSR's RRDBNet, and its scales."""

from __future__ import annotations

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet

from tests.support.gpu import on_device

pytestmark = pytest.mark.usefixtures("device")

SMALL = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}


def test_x4_is_basicsr_s_and_its_weights_are_interchangeable() -> None:
    theirs, ours = on_device(RRDBNet(3, 3, **SMALL)), on_device(RRDBNetDP(3, 3, **SMALL))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = on_device(torch.rand(1, 3, 7, 9))
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("scale", "convolutions"), [(2, 1), (3, 1), (4, 2)])
def test_scale(scale: int, convolutions: int) -> None:
    net = on_device(RRDBNetDP(scale=scale, **SMALL))
    assert net(on_device(torch.rand(2, 3, 5, 6))).shape == (2, 3, 5 * scale, 6 * scale)
    assert net.conv_first.in_channels == 3
    assert len([name for name in net.state_dict() if name.startswith("conv_up") and "weight" in name]) == convolutions


def test_an_unsupported_scale_is_refused() -> None:
    with pytest.raises(UserError, match=r"2, 3, 4.*5"):
        RRDBNetDP(scale=5)
