"""A network that is ready to run, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dp_basicsr.archs.rrdbnet_dp_arch import RRDBNetDP

import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet
from torch import nn

Arch = Literal["RRDBNetDP", "RRDBNet", "MSRResNet"]

# BasicSR's RRDBNet at x2 and x1 folds the image by pixel-unshuffle: input channels a colour -> scale, folding factor.
FOLDED = {4: (2, 2), 16: (1, 4)}


@dataclass(frozen=True)
class NetworkSpec:
    """What a generator is made of; the names are BasicSR's (``network_g`` of an option file).

    ``num_grow_ch`` is 0 for MSRResNet, which has none.
    """

    arch: Arch
    scale: int
    num_feat: int
    num_block: int
    num_grow_ch: int = 0

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return next((fold for scale, fold in FOLDED.values() if scale == self.scale), 1) if self.is_folded else 1

    @property
    def is_folded(self) -> bool:
        """Whether the network is BasicSR's RRDBNet with pixel-unshuffle."""
        return self.arch == "RRDBNet"

    def build(self) -> nn.Module:
        """Make the network, without weights (on the meta device)."""
        size = {"num_feat": self.num_feat, "num_block": self.num_block}
        with torch.device("meta"):
            if self.arch == "MSRResNet":
                return MSRResNet(3, 3, upscale=self.scale, **size)
            make: Any = RRDBNet if self.is_folded else RRDBNetDP
            return make(3, 3, scale=self.scale, num_grow_ch=self.num_grow_ch, **size)

    def __str__(self) -> str:
        growth = f", growth {self.num_grow_ch}" if self.num_grow_ch else ""
        return f"{self.arch} x{self.scale} ({self.num_block} blocks, {self.num_feat} features{growth})"


@dataclass
class LoadedNetwork:
    """A network in eval mode and what has to be known to run it.

    Attributes:
        module: (N, 3, H, W) RGB in [0, 1] -> (N, 3, scale * H, scale * W).
        scale: output size over input size.
        multiple: H and W must be multiples of this.
        num_feat: channels between the layers, which memory is proportional to.
        title: what it is, for people.
        notes: what its file says about it.
        spec: how it is built; None for an ONNX file.
    """

    module: nn.Module
    scale: int
    multiple: int
    num_feat: int
    title: str
    notes: dict[str, str]
    spec: NetworkSpec | None = None
