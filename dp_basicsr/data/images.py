"""Reading and writing image files: 8 bit, BGR as OpenCV has it, and nothing that has to be guessed."""

from __future__ import annotations

import errno
import io
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.errors import UserError

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif")
LOSSLESS_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 1 << 27  # of one image: 16384 x 8192, 0.4 GB decoded; a few kilobytes of PNG can claim more

_ORIENTATION = 0x0112  # the EXIF tag
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # Pillow's names for the suffixes above

# A whole file contains these. Some OpenCV versions return the upper part of a cut-off file as if it were an image.
_END_MARKS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}


class BadImageError(UserError):
    """One image file cannot be used; the message says why, the caller says which."""


@dataclass(frozen=True)
class BadImage:
    """An image file that could not be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def find_images(folder: Path) -> list[Path]:
    """List the image files of ``folder`` (not of folders in it, nothing hidden), sorted by name.

    Raises:
        UserError: ``folder`` is no folder, or no image is in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected a folder of images")
    paths = sorted(path for path in folder.iterdir() if _is_image(path))
    if not paths:
        raise UserError(f"no image in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def left_out(folder: Path) -> str:
    """Count the files and folders of ``folder`` that ``find_images`` leaves out, by suffix; "" where there are none."""
    others = [path for path in folder.iterdir() if not (_is_image(path) or path.name.startswith("."))]
    kinds = Counter("folder" if path.is_dir() else path.suffix.lower() or "no suffix" for path in others)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{folder}: left out {len(others)} that are no images ({counts})" if others else ""


def read_image(path: Path, *, gray: bool = False) -> NDArray[np.uint8]:
    """Read ``(H, W, 3)``, BGR, uint8, range [0, 255]; with ``gray`` also ``(H, W)``.

    Raises:
        BadImageError: the file cannot be read, or as ``decode_image``.
    """
    return decode_image(_read_bytes(path), gray=gray)


def decode_image(data: bytes | memoryview, *, gray: bool = False) -> NDArray[np.uint8]:
    """Decode the content of an image file to what ``read_image`` returns.

    16 bits and alpha are refused rather than dropped: what OpenCV would make of them in silence is not what is in the
    file. An alpha that is opaque everywhere says nothing and is left out. An EXIF orientation is applied, as OpenCV
    does where BasicSR reads images.

    Raises:
        BadImageError: it does not decode, is cut off, has more than ``MAX_PIXELS`` (looked up in its head, before
            anything is decoded), or is of another kind.
    """
    image = _without_opaque_alpha(_decode(bytes(data)))
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype != np.uint8:
        raise BadImageError(f"has {8 * image.dtype.itemsize} bits a channel, expected 8")
    if channels != 3 and not (gray and channels == 1):
        kind = {1: "gray", 2: "gray with alpha", 4: "colour with alpha"}.get(channels, f"{channels} channels")
        raise BadImageError(f"is {kind}, expected {'gray or ' if gray else ''}three colour channels without alpha")
    return image


def encode_png(image: NDArray[np.uint8], compression: int = 1) -> bytes:
    """Encode ``(H, W[, 3])`` BGR uint8 as PNG; ``compression`` is zlib's level, 0 to 9; BasicSR's LMDBs have 1."""
    # Asked for no level, OpenCV takes level 1 with one filter for all rows instead of trying every filter on each: on
    # photographs twice as fast to write and faster to read, at the same size within a few percent.
    return encode(image, ".png", [] if compression == 1 else [cv2.IMWRITE_PNG_COMPRESSION, compression])


def encode(image: NDArray[np.uint8], suffix: str, parameters: list[int] | None = None) -> bytes:
    """Encode ``(H, W[, 3])`` BGR uint8 in the format that ``suffix`` (".png", ".bmp") names."""
    whole, data = cv2.imencode(suffix, image, parameters or [])
    if not whole:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as {suffix}")
    return data.tobytes()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "no file on a disk")  # a pipe would be waited for
        return path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error


def _decode(data: bytes) -> NDArray[np.uint8]:
    for start, end in _END_MARKS.items():
        if data.startswith(start) and end not in data:
            raise BadImageError("is cut off before its end")
    orientation = exif_orientation(data)
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if image is not None and orientation != 1:  # which OpenCV ignores for IMREAD_UNCHANGED alone
            alpha = _without_opaque_alpha(image).shape[2:] in ((2,), (4,))  # type: ignore[arg-type]
            image = image if alpha else cv2.imdecode(buffer, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # more pixels than OpenCV allows, for one
        raise BadImageError(f"is refused by OpenCV ({error.err})") from error
    if image is None:
        raise BadImageError("is no image that OpenCV can decode")
    return image  # type: ignore[return-value]


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation (1: upright) of an image file's content.

    Raises:
        BadImageError: It is no image, or has more than ``MAX_PIXELS``.
    """
    orientation = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large image, and of what is about to be named as damaged
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                pixels = image.width * image.height
                with suppress(Exception):  # a broken EXIF block, on which Pillow raises anything, turns nothing
                    orientation = image.getexif().get(_ORIENTATION, 1)
    except Image.DecompressionBombError as error:  # Pillow's own limit, where it is on
        raise BadImageError(f"is refused before decoding: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImageError(f"is no image in {', '.join(_FORMATS)}" if data else "is empty") from error
    if pixels > MAX_PIXELS:
        raise BadImageError(f"has {pixels / 1e6:,.0f} megapixels, at most {MAX_PIXELS / 1e6:,.0f} are decoded")
    return orientation


def _without_opaque_alpha(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 3 and image.shape[2] in (2, 4) and (image[..., -1] == np.iinfo(image.dtype).max).all():
        return np.ascontiguousarray(image[..., :-1].squeeze(axis=2) if image.shape[2] == 2 else image[..., :-1])
    return image


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
