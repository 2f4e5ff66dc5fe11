"""The parts of BasicSR's generators, which upscaling needs where BasicSR is not installed.

Names, arithmetic and the order of random numbers are BasicSR's, so weights and seeded runs are interchangeable.
"""

from __future__ import annotations

from collections.abc import Iterable

from dp_basicsr.utils.input_size import InputSize

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESIDUAL = 0.2  # scale of the residuals, ESRGAN's beta


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, 1, 1)


@torch.no_grad()
def initialise(convs: Iterable[nn.Conv2d], scale: float = 0.1) -> None:
    """Draw weights by He's initialisation times ``scale``, biases 0."""
    for module in convs:
        nn.init.kaiming_normal_(module.weight)
        module.weight *= scale
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def to_channels_last(net: nn.Module) -> None:
    """Store the weights of rank 4 so; ``Module.to`` refuses those of rank 5 as well, such as FFTformer's."""
    net._apply(lambda weights: weights.contiguous(memory_format=torch.channels_last) if weights.ndim == 4 else weights)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it; (N, num_feat, H, W) to the same."""

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.conv1 = conv(num_feat, num_grow_ch)
        self.conv2 = conv(num_feat + num_grow_ch, num_grow_ch)
        self.conv3 = conv(num_feat + 2 * num_grow_ch, num_grow_ch)
        self.conv4 = conv(num_feat + 3 * num_grow_ch, num_grow_ch)
        self.conv5 = conv(num_feat + 4 * num_grow_ch, num_feat)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)
        initialise((self.conv1, self.conv2, self.conv3, self.conv4, self.conv5))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the scaled residual."""
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * RESIDUAL + x  # type: ignore[no-any-return]


class RRDB(nn.Module):
    """Three dense blocks and a residual around them: ESRGAN's block."""

    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the scaled residual."""
        return self.rdb3(self.rdb2(self.rdb1(x))) * RESIDUAL + x  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two convolutions without batch-norm and a residual around them: MSRResNet's block."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(num_feat, num_feat), conv(num_feat, num_feat)
        self.relu = nn.ReLU(inplace=True)
        initialise((self.conv1, self.conv2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the residual."""
        return x + self.conv2(self.relu(self.conv1(x)))  # type: ignore[no-any-return]


class MSRResNet(nn.Module):
    """BasicSR's MSRResNet (SRResNet without batch-norm), the generator of SRGAN-DP; ``upscale`` is 2, 3 or 4."""

    def __init__(
        self, num_in_ch: int, num_out_ch: int, num_feat: int = 64, num_block: int = 16, upscale: int = 4
    ) -> None:
        super().__init__()
        self.upscale = upscale
        self.input_size = InputSize()  # any size
        # x4 is two steps of x2.
        factor = 2 if upscale == 4 else upscale
        self.conv_first = conv(num_in_ch, num_feat)
        self.body = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.upconv1 = conv(num_feat, num_feat * factor**2)
        if upscale == 4:
            self.upconv2 = conv(num_feat, num_feat * factor**2)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.conv_hr, self.conv_last = conv(num_feat, num_feat), conv(num_feat, num_out_ch)
        self.lrelu = nn.LeakyReLU(negative_slope=0.1, inplace=True)
        # In BasicSR's order, upconv2 last: the same seed draws the same weights.
        initialise((self.conv_first, self.upconv1, self.conv_hr, self.conv_last))
        if upscale == 4:
            initialise((self.upconv2,))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, (N, num_in_ch, H, W), in [0, 1]."""
        out = self.body(self.lrelu(self.conv_first(x)))
        for upconv in (self.upconv1, self.upconv2) if self.upscale == 4 else (self.upconv1,):
            out = self.lrelu(self.pixel_shuffle(upconv(out)))
        base = F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return self.conv_last(self.lrelu(self.conv_hr(out))) + base  # type: ignore[no-any-return]
