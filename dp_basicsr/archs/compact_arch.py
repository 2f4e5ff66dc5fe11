"""A compact generator that trains from its own start: Real-ESRGAN's SRVGGNetCompact as folded residual blocks."""

from __future__ import annotations

from dp_basicsr.archs.blocks import conv, initialise
from dp_basicsr.registration import register
from dp_basicsr.utils.input_size import InputSize

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@register("arch")
class CompactDP(nn.Module):
    """SRVGGNetCompact, whose convolutions between the first and the last start near the identity.

    The function and the state_dict are those of BasicSR's SRVGGNetCompact with PReLU, which starts from torch's own
    initialisation and, trained for a short time, stays at nearest neighbour's result. Here each of these convolutions
    starts as a residual block folded into it: He's initialisation times 0.3 plus the identity; the last one times 0.1.

    Args:
        num_in_ch: Channels of the images.
        num_out_ch: The same number, as the enlarged input is added.
        num_feat: Channels between the convolutions.
        num_conv: Number of convolutions between the first and the last.
        upscale: Any positive integer.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_conv: int = 16, upscale: int = 4
    ) -> None:
        super().__init__()
        self.scale = self.upscale = upscale
        self.input_size = InputSize()  # any size
        first, last = conv(num_in_ch, num_feat), conv(num_feat, num_out_ch * upscale**2)
        inner = [conv(num_feat, num_feat) for _ in range(num_conv)]
        initialise((first,), 1)
        initialise(inner, 0.3)
        initialise((last,), 0.1)
        with torch.no_grad():
            # The middle weight alone, from each channel to itself, is the identity.
            for module in inner:
                module.weight[:, :, 1, 1] += torch.eye(num_feat)
        layers = [layer for module in (first, *inner) for layer in (module, nn.PReLU(num_feat))]
        self.body = nn.Sequential(*layers, last)
        self.upsampler = nn.PixelShuffle(upscale)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, (N, num_in_ch, H, W), in [0, 1]: nearest neighbour plus what the network adds."""
        return self.upsampler(self.body(x)) + F.interpolate(x, scale_factor=self.upscale)  # type: ignore[no-any-return]
