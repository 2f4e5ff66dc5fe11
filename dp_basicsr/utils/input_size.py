"""Input size requirements of networks, and running them on images of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # InputSize is also used without torch
    from torch import Tensor, nn

# BasicSR's RRDBNet applies pixel-unshuffle at these scales: scale -> factor.
RRDBNET_FOLDS = {2: 2, 1: 4}


@dataclass(frozen=True)
class InputSize:
    """Requirements on the height and width of a network's input, in pixels.

    Attributes:
        multiple: Divisor of height and width.
        minimum: Minimum height and width.
        square: Whether height and width must be equal.
    """

    multiple: int = 1
    minimum: int = 1
    square: bool = False

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest allowed size that an image of ``height`` x ``width`` can be padded to."""
        height, width = (math.ceil(max(side, self.minimum) / self.multiple) * self.multiple for side in (height, width))
        return (max(height, width),) * 2 if self.square else (height, width)


def input_size(net: nn.Module) -> InputSize:
    """Return the requirements of a network, bare or wrapped by DistributedDataParallel.

    A network opened from a file has them in its attribute ``input_size``. For others they are derived from common
    properties of super-resolution networks: the ``window_size`` of transformers (SwinIR, HAT), the pixel-unshuffle of
    BasicSR's RRDBNet at x2 and x1, and modules of type ``nn.PixelUnshuffle``.

    Use it with ``run_padded``, which pads and crops::

        size = input_size(net)
        output = run_padded(net, images, size, scale)

    With tiles, pad the image to ``InputSize(size.multiple).fit(height, width)``, cut tiles at multiples of
    ``size.multiple``, run each tile with ``run_padded``, and crop the result.
    """
    from torch import nn

    net = getattr(net, "module", net)
    known = getattr(net, "input_size", None)
    if isinstance(known, InputSize):
        return known
    factors = []
    for module in net.modules():
        window = getattr(module, "window_size", 1)
        factors += list(window) if isinstance(window, (list, tuple)) else [window]
        factors += [module.downscale_factor] if isinstance(module, nn.PixelUnshuffle) else []
    if any(kind.__name__ == "RRDBNet" for kind in type(net).__mro__):
        factors.append(RRDBNET_FOLDS.get(getattr(net, "scale", 4), 1))
    return InputSize(math.lcm(*(factor for factor in factors if isinstance(factor, int) and factor > 0)))


def run_padded(forward: Callable[[Tensor], Tensor], images: Tensor, size: InputSize, scale: int) -> Tensor:
    """Run a network on images of any size: repeat the last row and column, and crop the result.

    Args:
        forward: The network, (N, C, h, w) float -> (N, C', scale * h, scale * w).
        images: (N, C, H, W) float. If H and W are allowed, they are passed unchanged.
        size: See ``input_size``.
        scale: Scale of ``forward``.

    Returns:
        (N, C', scale * H, scale * W).
    """
    height, width = images.shape[-2:]
    padded_height, padded_width = size.fit(height, width)
    if (padded_height, padded_width) == (height, width):
        return forward(images)
    return forward(pad(images, padded_height, padded_width))[..., : height * scale, : width * scale]


def pad(images: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of (N, C, H, W) float images until they are ``height`` x ``width``."""
    from torch.nn import functional as F

    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]), mode="replicate")
