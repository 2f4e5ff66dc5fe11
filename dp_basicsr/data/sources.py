"""Images from any source: the files of a folder, or the records of an LMDB of either format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.lmdb_records import Shape, from_planes, lmdb_reader, read_meta_info
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import IMAGE_SUFFIXES, BadImageError, find_images
from dp_basicsr.images.strict import decode_image, read_image

import cv2
import numpy as np
from numpy.typing import NDArray

# BasicSR's comment behind a name: `a.png (480,480,3)`.
_SHAPE = re.compile(r"\s+\(\d+,\s*\d+(,\s*\d+)?\)(\s[^()]*)?$")


@dataclass(frozen=True)
class ImageSource:
    """One image to read."""

    path: Path  # the file, or the LMDB with the record
    key: str  # name without extension; the record's key
    shape: Shape | None = None  # (height, width, channels) from ``meta_info.txt`` for a record; None for a file
    raw: bool = False  # whether the record is raw

    def __str__(self) -> str:
        return str(self.path if self.shape is None else self.path / self.key)

    @property
    def name(self) -> str:
        """The file's name with extension; for a record, its name as a PNG file."""
        return self.path.name if self.shape is None else f"{self.key}.png"

    def read(self, of_16_bits: bool = False) -> NDArray[np.uint8]:
        """Read ``(H, W, 3)`` BGR uint8, or gray ``(H, W)``; a BadImageError as of ``read_image``."""
        if self.shape is None:
            return read_image(self.path, of_16_bits)
        try:
            with lmdb_reader(self.path).record(self.key) as record:
                image = from_planes(record, self.shape) if self.raw else decode_image(record, of_16_bits)
        except UserError as error:
            raise BadImageError(str(error)) from error
        shape = (*image.shape, 1)[:3]
        if shape != self.shape:
            actual, expected = (" x ".join(map(str, sides)) for sides in (image.shape, self.shape))
            raise BadImageError(f"is {actual}, but its meta_info.txt says {expected}")
        return image


def may_be_image(path: str | Path) -> bool:
    """Whether training takes a file for an image: by its suffix, or by its content if the suffix is unusual."""
    # A set may have tens of thousands, which are not opened here.
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES or cv2.haveImageReader(str(path))


def find_sources(root: Path, is_image: Callable[[Path], bool] | None = None) -> list[ImageSource]:
    """List the images of a folder (see ``find_images``), or the records of an LMDB, sorted; none is a UserError."""
    if root.suffix != ".lmdb":
        if root.name == "data.mdb" or Path(root, "data.mdb").is_file():
            raise UserError(f"{root}: expected the folder of an LMDB, whose name ends in .lmdb")
        return [ImageSource(path, path.stem) for path in find_images(root, is_image)]
    info = read_meta_info(root)
    return [ImageSource(root, key, shape, info.raw) for key, shape in sorted(info.shapes.items())]


def listed_names(meta_info_file: str | Path, folder: Path) -> list[str]:
    """Return the file names of ``folder`` in a list, UTF-8, one per line, without comments; a name may have blanks."""
    try:
        # Editors on Windows may write a byte order mark.
        lines = Path(meta_info_file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"the list {meta_info_file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{meta_info_file} is not UTF-8 ({error}); save it as UTF-8") from error
    names = []
    # Not Path's own is_file, which raises an error for a text that is too long for a name.
    for line in filter(str.strip, lines):
        # BasicSR reads to the first blank, so what stands behind it may be a comment or the rest of the name.
        plain = _SHAPE.sub("", line.strip())
        readings = line, line.strip(), _SHAPE.sub("", line.rstrip()), plain, line.split(" ")[0]
        name = next((name for name in readings if os.path.isfile(folder / name)), plain)
        # An image's name, alone or in front of its LQ's, may begin like a comment.
        is_there = any(os.path.isfile(folder / part) for part in (name, name.partition(",")[0]))
        if is_there or not re.match(r"#+(\s|$)", name):
            names.append(name)
    return names


def split_pair(name: str, gt_root: Path, lq_root: Path, template: str) -> tuple[Path, Path]:
    """Return GT and LQ of a line in a list: a GT's name, or Real-ESRGAN's ``gt, lq``, each maybe with commas."""
    commas = [place for place, sign in enumerate(name) if sign == ","]
    if commas and not os.path.isfile(gt_root / name):
        at = next((place for place in commas if os.path.isfile(gt_root / name[:place])), commas[len(commas) // 2])
        return gt_root / name[:at], lq_root / name[at + 1 :].strip()
    file = Path(name)
    lq = template.format(file.stem) + file.suffix
    # BasicSR looks for it without the GT's subfolder.
    in_subfolder = lq_root / file.parent / lq
    found = not file.is_absolute() and not os.path.isfile(lq_root / lq) and os.path.isfile(in_subfolder)
    return gt_root / name, in_subfolder if found else lq_root / lq
