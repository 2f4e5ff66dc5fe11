"""Open image files: formats, limits, EXIF's orientation, and what damage becomes."""

from __future__ import annotations

import errno
import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.png import SIGNATURE, split

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from tifffile import TiffFile, TiffPage

# What Pillow can be built without, by how the file begins.
_OPTIONAL = {"WEBP": rb"RIFF....WEBP", "AVIF": rb"....ftypavi[fs]"}
# Asked for a name that it does not know, as avif before 11.3, Pillow warns.
LACKING = {kind for kind in _OPTIONAL if not (kind.lower() in features.modules and features.check(kind.lower()))}
READ_FORMATS = tuple(kind for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF") if kind not in LACKING)
PILLOW = "`pip install --force-reinstall pillow` has it"
# It would tell at each reading of a value for no data that the pixels cannot have, as many GeoTIFFs name.
logging.getLogger("tifffile").addFilter(lambda record: "GDAL_NODATA" not in record.getMessage())
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> transpose first, then flip vertically, then horizontally (Exif 2.32, 4.6.4).
_UPRIGHT = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
# Pictures of other types, by how the file begins.
_OTHERS = {
    rb"....ftyp(hei|hev|mif1|msf1)": "HEIC", rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL", rb"\0\0\0\x0cjP  ": "JPEG 2000",
    rb"\s*<(\?xml[^>]*>\s*<svg|svg)": "SVG", rb"%PDF": "PDF", rb"8BPS": "Photoshop's", rb"DDS ": "DDS",
    rb"v/1\x01": "OpenEXR", rb"(II|MM)[*+\0]": "a TIFF of other channels or values than gray or colours, or a camera's",
    # TGA has no mark: its kind of picture, and bits of a pixel.
    rb"\0\0[\1\2]\0[^\0]": "an icon", rb".[\0\1][\1-\3\t-\x0b].{13}[\x08\x10\x18\x20]": "TGA",
    rb"PK\x03\x04|Rar!|.{257}ustar": "an archive", rb"....ftyp(?!avi[fs])|\x1aE\xdf\xa3|RIFF....AVI ": "a video",
}  # fmt: skip


def read_bytes(path: Path) -> bytes:
    """Read an image file."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Reading a pipe would block.
            raise OSError(errno.EINVAL, "not a regular file")
        return path.read_bytes()
    except OSError as error:
        link = f"is a link to {path.readlink()}, and " if path.is_symlink() else ""
        raise BadImageError(f"{link}cannot be read ({error.strerror})") from error


@contextmanager
def damage_is_refused() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a BadImageError."""
    try:
        yield
    # Memory that runs out is no damage of the file.
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise what they happen to meet.
        of_system = getattr(error, "strerror", None)
        reason = of_system or " ".join(str(error).split())
        # A bare number, such as the KeyError of a decoder's table, says nothing.
        if not any(sign.isalpha() for sign in reason):
            reason = f"damaged: {type(error).__name__} {reason}".strip()
        way = "" if of_system else ": save it anew with a viewer that shows it"
        raise BadImageError(f"cannot be read ({reason}){way}") from error


def refuse_size(width: int, height: int, max_pixels: int) -> None:
    """Raise a BadImageError if the header declares too many pixels."""
    if width * height > max_pixels:
        raise BadImageError(f"is {width} x {height}, more than {max_pixels / 1e6:g} megapixels: cut it into parts")


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, bytes]]:
    """Open the content of an image file with Pillow, without decoding it.

    Yields:
        The image, and the file: for PNG that of the pixels alone, while ``info`` has the rest, see ``png.split``.

    Raises:
        BadImageError: It is not an image, has more than ``max_pixels`` or several pictures, or, within the block, turns
            out to be damaged.
    """
    if not data:
        raise BadImageError("is empty")
    with damage_is_refused():
        info: dict[Any, Any] = {}
        if data.startswith(SIGNATURE):
            if data[12:16] == b"CgBI":
                raise BadImageError("is a PNG as Xcode packs it (CgBI): save it anew with a viewer that shows it")
            data, info = split(data)
        if data.startswith(TIFF_MARKS):
            # First, because Pillow does not know every kind of them.
            with TiffFile(io.BytesIO(data)) as file:
                refuse_frames(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are ours to refuse
                image = Image.open(io.BytesIO(data), formats=READ_FORMATS)
        except Image.DecompressionBombError:
            # Pillow's limit is above ours, except that of upscaling, which switches it off.
            raise BadImageError(f"has more than {max_pixels / 1e6:g} megapixels: cut it into parts") from None
        except UnidentifiedImageError as error:
            if data.startswith((SIGNATURE, b"\xff\xd8\xff")):
                raise BadImageError("is damaged at its start: save it anew with a viewer that shows it") from error
            kind = next((name for mark, name in _OTHERS.items() if re.match(mark, data, re.DOTALL)), "")
            for lacking in (name for name in LACKING if re.match(_OPTIONAL[name], data, re.DOTALL)):
                raise BadImageError(f"is {lacking}, which this Pillow was built without: {PILLOW}") from error
            ways = {"an archive": "unpack it", "a video": "take its images (`ffmpeg -i VIDEO %06d.png`)"}
            what = f"is {kind}, {ways.get(kind, 'convert it')} first: it is" if kind else "is"
            raise BadImageError(f"{what} not an image of a supported type ({', '.join(READ_FORMATS)})") from error
        with image:
            if image.format == "GIF":
                # Pillow would make the picture as large as the frame is far away: gigabytes of nothing.
                screen, (left, top, *_) = struct.unpack_from("<HH", data, 6), image.tile[0][1]  # type: ignore[attr-defined, misc]
                if 0 < screen[0] <= left or 0 < screen[1] <= top:
                    raise BadImageError(f"shows nothing: its frame is outside of its {screen[0]} x {screen[1]} pixels")
            refuse_size(image.width, image.height, max_pixels)
            if image.format != "TIFF":
                refuse_frames(image)
            if image.format in ("JPEG", "MPO"):
                # Pillow has no profile that stands behind the frame's header, or twice, and does not say so.
                parts = sorted({part for _, part in image.applist if part.startswith(b"ICC_PROFILE\0")})  # type: ignore[attr-defined]
                info["icc_profile"] = b"".join(part[14:] for part in parts) or None
            image.info |= info
            yield image, data


def header_size(path: Path) -> tuple[int, int]:
    """Return the width and height that the header of a file declares; raise a BadImageError for what is no image."""
    with damage_is_refused(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large images, whose pixels are not read here
        with Image.open(path, formats=READ_FORMATS) as image:
            return image.size


def webp_chunks(data: bytes) -> list[bytes]:
    """Return the names of a WebP file's chunks; VP8L has every pixel exactly."""
    # RIFF, size, WEBP; then chunks of a name, a size and an even number of bytes.
    offset, names = 12, list[bytes]()
    while offset + 8 <= min(len(data), end_of_webp(data)):
        names.append(data[offset : offset + 4])
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        offset += 8 + size + size % 2
    return names


def end_of_webp(data: bytes) -> int:
    """Return where a WebP file says that it ends."""
    return 8 + int.from_bytes(data[4:8], "little")


def refuse_frames(file: Image.Image | TiffFile) -> None:
    """Raise a BadImageError for several pictures, a raw photograph, or values not unsigned or of more than 16 bits.

    Smaller copies of the first picture do not count, and neither does a mask.
    """
    if isinstance(file, TiffFile):
        if not file.pages:
            raise BadImageError("is cut off: it lists no picture")
        page: TiffPage = file.pages[0]  # type: ignore[assignment]
        # Values of no stated kind (4) are read as unsigned.
        kind = {2: "signed ", 3: "floating ", 5: "complex ", 6: "complex "}.get(page.sampleformat, "")
        if kind or page.bitspersample > 16:
            raise BadImageError(
                f"has {kind}values of {page.bitspersample} bits, expected unsigned ones of 8 or 16: shift and scale it"
            )
        if page.is_reduced and page.subifds:
            raise BadImageError("is a raw photograph, of which it shows a preview: develop it first")
        count = 1 + sum(not (page.is_reduced or page.is_mask) for page in file.pages[1:])  # type: ignore[union-attr]
        # ImageJ lists the first page alone of more than 4 GB; the others stand behind it.
        images = (file.imagej_metadata or {}).get("images", 1)
        if page.dataoffsets[0] + images * page.nbytes <= file.filehandle.size:
            count = max(count, images)
        count *= page.imagedepth
    else:
        # An MPO is a phone's JPEG with previews as further frames.
        count = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
    if count > 1:
        raise BadImageError(f"has {count} frames or pages: save the one to use by itself")


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 (upright) to 8; 0 if there is none, or EXIF is damaged."""
    with suppress(Exception):
        # Pillow's parser raises anything on broken EXIF. Its getexif() also takes the orientation of XMP where EXIF has
        # none, which neither viewers nor OpenCV do.
        exif, block = Image.Exif(), image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        # Viewers and OpenCV read a block with one mark, Pillow with any number.
        exif.load(b"" if block.startswith(b"Exif") else block)
        orientation = getattr(image, "tag_v2", exif).get(ORIENTATION, 0)
        return orientation if orientation in _UPRIGHT else 0
    return 0


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, C) as EXIF's orientation says."""
    transpose, vertical, horizontal = _UPRIGHT.get(orientation, _UPRIGHT[1])
    array = array.swapaxes(0, 1) if transpose else array
    return np.ascontiguousarray(array[:: -1 if vertical else 1, :: -1 if horizontal else 1])
