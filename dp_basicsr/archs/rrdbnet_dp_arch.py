"""ESRGAN's generator for upscaling by 2, 3 and 4 (section 3.1 of the paper)."""

from __future__ import annotations

from dp_basicsr.archs.blocks import RRDB, conv
from dp_basicsr.errors import UserError
from dp_basicsr.registration import register
from dp_basicsr.utils.input_size import InputSize

from torch import Tensor, nn
from torch.nn import functional as F

# Scale -> factors of the upsampling blocks (nearest interpolation, 3x3 convolution, LeakyReLU), section 3.1.
UPSAMPLING = {2: (2,), 3: (3,), 4: (2, 2)}


@register("arch")
class RRDBNetDP(nn.Module):
    """RRDBNet whose upsampling blocks match the requested scale.

    BasicSR's RRDBNet always has two x2 blocks: for x3 it returns x4, and for x2 it first applies pixel-unshuffle to the
    input. Here x2 is one x2 block, x3 one x3 block and x4 two x2 blocks, all on the full input. At x4 it computes the
    same function as BasicSR's RRDBNet, and the state_dicts are interchangeable.

    Args:
        num_in_ch: Channels of the input image (RGB: 3).
        num_out_ch: Channels of the output image (RGB: 3).
        scale: 2, 3 or 4.
        num_feat: Channels between the blocks (paper: 64).
        num_block: Number of RRDBs (paper: 23).
        num_grow_ch: Channels that each dense layer adds (paper: 32).

    Raises:
        ValueError: The scale is unsupported.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        scale: int = 4,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
    ) -> None:
        if scale not in UPSAMPLING:
            raise UserError(f"RRDBNetDP: expected scale to be one of {sorted(UPSAMPLING)}, got {scale!r}")
        super().__init__()
        self.scale = scale
        self.input_size = InputSize()  # any size: unlike BasicSR's RRDBNet, no pixel-unshuffle
        self.conv_first = conv(num_in_ch, num_feat)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = conv(num_feat, num_feat)
        self.conv_up1, self.conv_up2 = conv(num_feat, num_feat), conv(num_feat, num_feat)
        self.conv_hr, self.conv_last = conv(num_feat, num_feat), conv(num_feat, num_out_ch)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)
        if len(UPSAMPLING[scale]) == 1:
            # Made first, so that every scale draws the same random numbers.
            del self.conv_up2

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x`` of shape (N, num_in_ch, H, W), RGB in [0, 1], to (N, num_out_ch, scale * H, scale * W)."""
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        for number, factor in enumerate(UPSAMPLING[self.scale], start=1):
            upconv = getattr(self, f"conv_up{number}")
            feat = self.lrelu(upconv(F.interpolate(feat, scale_factor=factor, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


class FoldedRRDBNet(RRDBNetDP):
    """BasicSR's RRDBNet at x2 and x1: RRDBNetDP x4 on an image whose 2x2 or 4x4 pixels are channels."""

    def __init__(self, channels: int, scale: int, num_feat: int, num_block: int, num_grow_ch: int) -> None:
        fold = 4 // scale
        super().__init__(channels * fold**2, channels, 4, num_feat, num_block, num_grow_ch)
        self.fold = fold
        self.input_size = InputSize(fold, fold=fold)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, (N, channels, H, W), whose sides are multiples of the fold."""
        return super().forward(F.pixel_unshuffle(x, self.fold))
