"""Padding for networks that need certain sizes."""

from __future__ import annotations

from copy import deepcopy

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.utils.input_size import InputSize, pad, run_padded
from dp_basicsr.utils.network_size import input_size

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet
from spandrel import SizeRequirements
from spandrel.__helpers.size_req import pad_tensor
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from tests.support.networks import swinir

SMALL = {"num_feat": 4, "num_block": 1, "num_grow_ch": 4}


@pytest.mark.parametrize("multiple", [1, 4, 7])
@pytest.mark.parametrize("minimum", [0, 5, 16])
@pytest.mark.parametrize("square", [False, True])
def test_padded_size_is_spandrels(multiple: int, minimum: int, square: bool) -> None:
    theirs = SizeRequirements(minimum, multiple, square)
    for height, width in ((1, 1), (5, 30), (16, 17), (28, 28)):
        add_width, add_height = theirs.get_padding(width, height)
        assert InputSize(multiple, minimum, square).fit(height, width) == (height + add_height, width + add_width)


class UNet(nn.Module):
    """segmentation_models.pytorch#146: "The size of tensor a (46) must match the size of tensor b (45)"."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1))
        self.up = nn.Upsample(scale_factor=4)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.up(self.down(images))


@pytest.mark.parametrize(
    ("net", "scale", "multiple"),
    [
        (RRDBNet(3, 3, scale=2, **SMALL), 2, 2),
        (RRDBNet(3, 3, scale=1, **SMALL), 1, 4),
        (RRDBNet(3, 3, scale=4, **SMALL), 4, 1),
        (RRDBNetDP(3, 3, scale=2, **SMALL), 2, 1),
        (MSRResNet(3, 3, 4, 1, upscale=3), 3, 1),
        (nn.Sequential(nn.PixelUnshuffle(3), nn.PixelShuffle(3)), 1, 3),
        (swinir(), 2, 4),
        (UNet(), 1, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_requirements_are_derived_and_any_size_runs(net: nn.Module, scale: int, multiple: int) -> None:
    size = input_size(net.eval())
    fold = multiple if type(net).__name__ == "RRDBNet" else 1
    assert size == InputSize(multiple, fold=fold)
    assert input_size(DataParallel(deepcopy(net))) == size  # it moves its network to a GPU
    images = torch.rand(2, 3, 9, 13)
    with torch.no_grad():
        result = run_padded(net, images, size, scale)
        assert result.shape == (2, 3, 9 * scale, 13 * scale)
        fitting = torch.rand(1, 3, 3 * multiple, 4 * multiple)
        assert torch.equal(run_padded(net, fitting, size, scale), net(fitting))


@pytest.mark.parametrize("sides", [(2, 19), (1, 1), (16, 16), (24, 24), (40, 33), (13, 64)])
def test_an_image_is_padded_as_by_spandrel(sides: tuple[int, int]) -> None:
    seen = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    images, size = torch.rand(1, 3, *sides), InputSize(8, minimum=16, square=True)
    _, expected = pad_tensor(images, SizeRequirements(minimum=16, multiple_of=8, square=True))
    result = run_padded(watch, images, size, 1)
    assert torch.equal(result, images)
    assert torch.equal(seen[0], expected)
    assert np.array_equal(pad(images.numpy(), size), expected)
