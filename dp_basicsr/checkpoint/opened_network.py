"""What is known of a network that has been opened. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize


@dataclass
class OpenedNetwork:
    """A network with the weights of a file.

    Attributes:
        file: Name of the file.
        arch: Name of the architecture, ours or spandrel's; ``ONNX`` or ``ncnn`` where the file does not tell.
        scale: Output size over input size.
        description: Architecture, scale and size, for people.
        choice: Which weights of the file these are, see ``Weights``.
        channels: 3: RGB; 1: gray, which runs on each colour of an image.
        size: Which H and W the network takes.
        arguments: ``num_feat``, ``num_block`` and ``num_grow_ch`` of the project's own networks.
        notes: What the file says about itself.
        module: An ``nn.Module`` in eval mode, (N, channels, H, W) in [0, 1] -> (N, channels, scale * H, scale * W);
            None where another package than torch runs the network.
    """

    file: str
    arch: str
    scale: int
    description: str
    choice: str = ""
    channels: int = 3
    size: InputSize = field(default_factory=InputSize)
    arguments: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    module: Any = None

    @property
    def title(self) -> str:
        """File and network, for people."""
        return f"{self.file}: {', '.join(filter(None, (self.description, self.choice)))}"

    def require_scale(self, scale: int | None) -> None:
        """Raise a UserError if ``scale`` is given and is not the network's."""
        if scale not in (None, self.scale):
            raise UserError(f"--scale {scale}: {self.file} is {self.description}; the size of the result is --outscale")


def is_converted(path: Path) -> bool:
    """Return whether a model is ONNX or ncnn; a ``.bin`` may also be weights for torch (``pytorch_model.bin``)."""
    return path.suffix in (".onnx", ".param") or (path.suffix == ".bin" and path.with_suffix(".param").is_file())
