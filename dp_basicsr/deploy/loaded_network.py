"""A network that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass, field

from dp_basicsr.checkpoint.network_spec import NetworkSpec
from dp_basicsr.utils.input_size import InputSize

from torch import nn


@dataclass
class LoadedNetwork:
    """A network in eval mode and what is needed to run it.

    Attributes:
        module: (N, channels, H, W) in [0, 1] -> (N, channels, scale * H, scale * W).
        scale: Output size over input size.
        title: File and network, for people.
        arch: Name of the architecture.
        description: Architecture, scale and size, for people.
        size: Which H and W the module takes.
        channels: 3: RGB; 1: gray, which runs on each colour of an image.
        num_feat: Channels between the layers, which memory is proportional to.
        notes: What its file says about it.
        spec: The arguments of one of the project's own networks; None for others.
        runtime: What runs the module.
    """

    module: nn.Module
    scale: int
    title: str
    arch: str
    description: str
    size: InputSize = field(default_factory=InputSize)
    channels: int = 3
    num_feat: int = 64
    notes: dict[str, str] = field(default_factory=dict)
    spec: NetworkSpec | None = None
    runtime: str = "torch"

    @property
    def multiple(self) -> int:
        """H and W must be multiples of this."""
        return self.size.multiple
