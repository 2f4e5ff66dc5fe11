"""What is known of a network that has been opened. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize


@dataclass
class OpenedNetwork:
    """A network with the weights of a file."""

    file: str  # its name
    arch: str  # name of the architecture, ours or spandrel's; ``ONNX`` or ``ncnn`` where the file does not tell
    scale: int  # output size over input size
    description: str  # architecture, scale and size, for people
    choice: str = ""  # which weights of the file these are, see ``Weights``
    channels: int = 3  # RGB; 1: gray, which runs on each colour of an image
    size: InputSize = field(default_factory=InputSize)  # which H and W it takes
    arguments: dict[str, int] = field(default_factory=dict)  # num_feat, num_block, num_grow_ch of our own networks
    notes: dict[str, str] = field(default_factory=dict)  # what the file says about itself
    # An nn.Module in eval mode, (N, channels, H, W) in [0, 1] -> (N, channels, scale * H, scale * W); None where
    # another package than torch runs the network.
    module: Any = None

    @property
    def title(self) -> str:
        """File and network, for people."""
        return f"{self.file}: {', '.join(filter(None, (self.description, self.choice)))}"

    def require_scale(self, scale: int | None) -> None:
        """Raise a UserError if ``scale`` is given and is not the network's."""
        if scale not in (None, self.scale):
            raise UserError(f"--scale {scale}: {self.file} is {self.description}; the size of the result is --outscale")


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the paths that a caller of the library gave as texts, or as a single one."""
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def is_converted(path: Path) -> bool:
    """Return whether a model is ONNX or ncnn; a ``.bin`` may also be weights for torch (``pytorch_model.bin``)."""
    return path.suffix.lower() in (".onnx", ".param") or (
        path.suffix == ".bin" and path.with_suffix(".param").is_file()
    )
