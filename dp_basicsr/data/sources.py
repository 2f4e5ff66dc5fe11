"""Images wherever they lie: the files of a folder, or the records of an LMDB of either form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.images import BadImageError, decode_image, exif_orientation, find_images, read_image
from dp_basicsr.data.lmdb_records import Shape, from_planes, lmdb_reader, read_meta_info
from dp_basicsr.errors import UserError

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageSource:
    """One image to be read.

    Attributes:
        path: the file, or the LMDB that the record is in.
        key: name without extension, the record's key.
        shape: of a record, (height, width, channels) as ``meta_info.txt`` has it; None for a file.
        raw: whether the record is raw.
    """

    path: Path
    key: str
    shape: Shape | None = None
    raw: bool = False

    def __str__(self) -> str:
        return str(self.place)

    @property
    def place(self) -> Path:
        """What to call it in messages: the file, or the LMDB and behind it the key."""
        return self.path if self.shape is None else self.path / self.key

    @property
    def name(self) -> str:
        """The file's name with extension; of a record, the name it would have as a PNG file."""
        return self.path.name if self.shape is None else f"{self.key}.png"

    def is_turned(self) -> bool:
        """Whether it is a file with an EXIF orientation that is not upright."""
        return self.shape is None and exif_orientation(self.path.read_bytes()) != 1

    def read(self, *, gray: bool = False) -> NDArray[np.uint8]:
        """Read ``(H, W, 3)`` BGR uint8, with ``gray`` also ``(H, W)``.

        Raises:
            BadImageError: as ``read_image``, or the record is missing or of another shape.
        """
        if self.shape is None:
            return read_image(self.path, gray=gray)
        try:
            with lmdb_reader(self.path).record(self.key) as record:
                image = from_planes(record, self.shape) if self.raw else decode_image(record, gray=gray)
        except BadImageError:
            raise
        except UserError as error:
            raise BadImageError(str(error)) from error
        if not gray and image.ndim == 2:
            raise BadImageError("is gray, expected three colour channels without alpha")
        if (*image.shape, 1)[:3] != self.shape:
            raise BadImageError(f"is {_text(image.shape)}, its meta_info.txt says {_text(self.shape)}")
        return image


def find_sources(place: Path) -> list[ImageSource]:
    """The images of a folder (not of folders in it), or the records that an LMDB's ``meta_info.txt`` names, sorted.

    Raises:
        UserError: no such folder, no image in it, or no LMDB of a known form.
    """
    if place.suffix != ".lmdb":
        return [ImageSource(path, path.stem) for path in find_images(place)]
    info = read_meta_info(place)
    return [ImageSource(place, key, shape, info.raw) for key, shape in sorted(info.shapes.items())]


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
