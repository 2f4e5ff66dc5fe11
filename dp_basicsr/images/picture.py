"""An image as a file holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dp_basicsr.images.metadata import Metadata
from dp_basicsr.utils.tiles import Pixels


@dataclass(frozen=True)
class Picture:
    """An image and its metadata.

    Attributes:
        colour: (H, W, 3), RGB, uint8 or uint16; upright (EXIF's orientation is applied).
        alpha: (H, W) of the same type, or None.
        gray: The three channels are equal, and one is written.
        metadata: What else the file knows.
    """

    colour: Pixels
    alpha: Pixels | None = None
    gray: bool = False
    metadata: Metadata = field(default_factory=Metadata)
