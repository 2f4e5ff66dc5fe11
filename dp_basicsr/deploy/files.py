"""Reading and writing pictures: nothing is lost in silence, and no half-written file is ever seen.

8-bit images go through Pillow. Pillow reduces 16-bit colour to 8 bits without a word, so these go through OpenCV, and
into TIFF through tifffile.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from dp_basicsr.data.images import BadImageError
from dp_basicsr.deploy.choices import FORMATS, QUALITY
from dp_basicsr.deploy.picture import Picture
from dp_basicsr.utils.tiles import Pixels

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
WITH_ALPHA = ("PNG", "WEBP", "TIFF")
WITH_16_BITS = ("PNG", "TIFF")
MAX_PIXELS = 1 << 30  # OpenCV's own limit, 3 GB decoded: inference.py switches Pillow's lower one off

_ORIENTATION = 0x0112
# EXIF orientation -> transpose first, then flip vertically, then horizontally (Exif 2.32, 4.6.4).
_UPRIGHT = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_BLACK_IS_ZERO, _RGB = 1, 2


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read PNG, JPEG, WebP, TIFF, BMP or GIF: 8 or 16 bits, gray, palette, colour or CMYK, with alpha or without.

    A palette becomes RGB, black and white becomes gray, CMYK becomes sRGB through its profile. EXIF's orientation is
    applied.

    Raises:
        BadImageError: No image, damaged, more pixels than ``max_pixels``, or a kind that cannot be kept: several
            frames, float, 32 bits.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadImageError(f"is {image.width} x {image.height}, more than {max_pixels / 1e6:g} megapixels")
            return _decode(image, data)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        reason = f"is no image, or of a kind that is not read (8 or 16 bits in {', '.join(READ_FORMATS)} are)"
        raise BadImageError(reason if data else "is empty") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadImageError(f"cannot be read ({reason})") from error


def write_picture(picture: Picture, path: Path, quality: int = QUALITY) -> None:
    """Write a picture in the format of the path's suffix, beside its place first, then renamed.

    Args:
        picture: 16 bits stay 16 in PNG and TIFF and are rounded to 8 in the others.
        path: See ``FORMATS``.
        quality: Of JPEG and WebP; 100 is lossless WebP.

    Raises:
        BadImageError: Alpha into a format without it, a size that the format does not have.
        OSError: The disk refuses; what was there before is untouched.
    """
    data = encode_picture(picture, path.suffix, quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def encode_picture(picture: Picture, suffix: str, quality: int = QUALITY) -> bytes:
    """Encode a picture in the format of ``suffix``; see ``write_picture``."""
    kind = FORMATS[suffix.lower()]
    if picture.alpha is not None and kind not in WITH_ALPHA:
        raise BadImageError(f"has transparency, which {kind} cannot keep: give --ext png or --alpha drop")
    if picture.colour.dtype == np.uint16 and kind in WITH_16_BITS:
        return _encode_16_bit_png(picture) if kind == "PNG" else _encode_16_bit_tiff(picture)
    image = Image.fromarray(_to_8_bit(_stack(picture)))
    by_format: dict[str, dict[str, Any]] = {
        "PNG": {"compress_level": 3},  # twice as fast as the default 6, files 3 % larger
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality, "lossless": quality == 100, "exact": True},
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "BMP": {},
    }
    options = by_format[kind]
    options |= {"icc_profile": picture.icc} if picture.icc and kind != "BMP" else {}
    options |= {"exif": picture.exif} if picture.exif and kind in ("PNG", "JPEG", "WEBP") else {}
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError) as error:  # WebP ends at 16383 pixels, JPEG at 65500
        raise BadImageError(f"of {image.width} x {image.height} cannot be written as {kind} ({error})") from error
    return file.getvalue()


def _decode(image: Image.Image, data: bytes) -> Picture:
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG with its preview is MPO
        raise BadImageError(f"has {image.n_frames} frames or pages: save the one to upscale by itself")  # type: ignore[attr-defined]
    # Pillow and OpenCV turn a TIFF upright while they decode it, other formats are left as they lie.
    orientation = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    exif = _exif_without_orientation(image)
    icc = image.info.get("icc_profile")
    if _bits(image, data) == 16:
        decoded = _decode_16_bit(image, data)
    else:
        if image.mode in ("CMYK", "YCbCr", "LAB"):
            image, icc = _to_srgb(image, icc), None
        decoded = _decode_8_bit(image)
    array, gray = _upright(decoded[0], orientation), decoded[1]
    colour = array[:, :, :1].repeat(3, axis=2) if array.shape[2] < 3 else array[:, :, :3]
    alpha = array[:, :, -1] if array.shape[2] in (2, 4) else None
    return Picture(np.ascontiguousarray(colour), alpha, gray, icc, exif)


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a channel as the file has them.

    Raises:
        BadImageError: 32 bits or floats.
    """
    if image.format == "PNG":
        return data[24]  # IHDR: 8 signature, 4 length, 4 type, 4 width, 4 height, then the depth
    if image.format != "TIFF":
        return 8
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(_TIFF_BITS, (1,)))
    if bits > 16 or max(tags.get(_TIFF_SAMPLE_FORMAT, (1,))) != 1:
        raise BadImageError(f"has {bits} bits a channel or floats, expected 8 or 16 bits unsigned")
    if bits == 16 and tags.get(_TIFF_PHOTOMETRIC) not in (_BLACK_IS_ZERO, _RGB):
        raise BadImageError("is a 16-bit TIFF that is neither gray (black is zero) nor RGB: convert it first")
    return bits


def _decode_16_bit(image: Image.Image, data: bytes) -> tuple[Pixels, bool]:
    """(H, W, 1, 3 or 4) uint16, RGB; and whether it is gray."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None or array.dtype != np.uint16 or array.shape[:2] != (image.height, image.width):
        raise BadImageError("is a 16-bit image that OpenCV cannot decode")
    if array.ndim == 2:
        return array[:, :, None], True
    gray_with_alpha = image.format == "PNG" and data[25] == 4  # IHDR's colour type
    return array[:, :, [2, 1, 0, 3][: array.shape[2]]], gray_with_alpha


def _decode_8_bit(image: Image.Image) -> tuple[Pixels, bool]:
    """(H, W, 1, 2, 3 or 4) uint8, RGB; and whether it is gray."""
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        raise BadImageError(f"has pixels of kind {image.mode!r}, expected gray, palette, RGB or CMYK")
    gray = image.mode in ("1", "L", "LA", "La")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if transparent:  # by way of RGBA: it is what applies a palette's or a colour key's transparency
        array = np.asarray(image.convert("RGBA"))
        return (array[:, :, [0, 3]] if gray else array), gray
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return (array[:, :, None] if gray else array), gray


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK and other spaces to sRGB, through the embedded profile where there is one."""
    if icc and image.mode == "CMYK":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[return-value]
        except ImageCms.PyCMSError:
            pass  # a broken profile: the plain conversion is what viewers show then
    return image.convert("RGB")


def _exif_without_orientation(image: Image.Image) -> bytes | None:
    if "exif" not in image.info:  # a TIFF's EXIF is its own tags, which describe the old file
        return None
    exif = image.getexif()
    exif.pop(_ORIENTATION, None)
    return exif.tobytes() if len(exif) else None


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    transpose, vertical, horizontal = _UPRIGHT.get(orientation, _UPRIGHT[1])
    array = array.swapaxes(0, 1) if transpose else array
    return array[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def _stack(picture: Picture) -> Pixels:
    """(H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) or (H, W, 4).

    16-bit gray with alpha is stacked as colour: hardly a program reads it as two channels.
    """
    as_gray = picture.gray and (picture.alpha is None or picture.colour.dtype == np.uint8)
    channels = picture.colour[:, :, :1] if as_gray else picture.colour
    if picture.alpha is not None:
        channels = np.concatenate([channels, picture.alpha[:, :, None]], axis=2)
    return channels[:, :, 0] if channels.shape[2] == 1 else channels


def _to_8_bit(array: Pixels) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, np.uint8)
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255


def _encode_16_bit_tiff(picture: Picture) -> bytes:
    file, channels = io.BytesIO(), _stack(picture)
    tifffile.imwrite(
        file,
        channels,
        photometric="minisblack" if channels.ndim == 2 else "rgb",
        extrasamples=None if picture.alpha is None else ["unassalpha"],
        compression="adobe_deflate",
        predictor=True,
        iccprofile=picture.icc,
        metadata=None,
    )
    return file.getvalue()


def _encode_16_bit_png(picture: Picture) -> bytes:
    """By OpenCV, whose older releases write neither profile nor EXIF: both chunks are put in here."""
    channels = _stack(picture)
    pixels = channels if channels.ndim == 2 else channels[:, :, [2, 1, 0, 3][: channels.shape[2]]]
    whole, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not whole:
        raise BadImageError("cannot be written as 16-bit PNG")
    data, chunks = encoded.tobytes(), b""
    if picture.icc:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc))
    if picture.exif:
        chunks += _png_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    header_end = 8 + 12 + 13  # signature; length, type and checksum of IHDR; its content
    return data[:header_end] + chunks + data[header_end:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
