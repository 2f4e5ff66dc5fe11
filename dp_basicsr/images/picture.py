"""An image as a file holds it."""

from __future__ import annotations

from dataclasses import dataclass

from dp_basicsr.utils.tiles import Pixels


@dataclass(frozen=True)
class Picture:
    """An image and its metadata.

    Attributes:
        colour: (H, W, 3), RGB, uint8 or uint16; upright (EXIF's orientation is applied).
        alpha: (H, W) of the same type, or None.
        gray: The three channels are equal, and one is written.
        icc: ICC profile.
        exif: EXIF block, without orientation.
    """

    colour: Pixels
    alpha: Pixels | None = None
    gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
