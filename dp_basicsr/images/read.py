"""Read images of all common types without silent losses.

8-bit images go through Pillow. Pillow silently reduces 16-bit colour to 8 bits, so OpenCV reads that.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.opening import ORIENTATION, opened, read_bytes, upright
from dp_basicsr.images.picture import Picture
from dp_basicsr.utils.tiles import Pixels

import cv2
import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 30  # OpenCV's limit, 3 GB decoded; deploy/run.py switches Pillow's lower one off

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_BLACK_IS_ZERO, _RGB = 1, 2


def read_picture(path: Path, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] = warnings.warn) -> Picture:
    """Read PNG, JPEG, WebP, TIFF, BMP or GIF: 8 or 16 bits, gray, palette, colour or CMYK, with or without alpha.

    A palette becomes RGB, black and white becomes gray, CMYK becomes sRGB by its profile. EXIF's orientation is
    applied; EXIF that is damaged is dropped with a warning.

    Raises:
        BadImageError: Not an image, damaged, more pixels than ``max_pixels``, or unsupported: several frames, floats,
            32 bits.
    """
    data = read_bytes(path)
    with opened(data, max_pixels) as image:
        return _decode(image, data, warn)


def _decode(image: Image.Image, data: bytes, warn: Callable[[str], None]) -> Picture:
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's JPEG with its preview is MPO
        raise BadImageError(f"has {image.n_frames} frames or pages: save the one to upscale by itself")  # type: ignore[attr-defined]
    orientation, exif = _split_exif(image, warn)
    icc = image.info.get("icc_profile")
    if _bits(image, data) == 16:
        decoded = _decode_16_bit(image, data)
    else:
        if image.mode in ("CMYK", "YCbCr", "LAB"):
            image, icc = _to_srgb(image, icc), None
        decoded = _decode_8_bit(image)
    array, gray = upright(decoded[0], orientation), decoded[1]
    colour = array[:, :, :1].repeat(3, axis=2) if array.shape[2] < 3 else array[:, :, :3]
    alpha = array[:, :, -1] if array.shape[2] in (2, 4) else None
    return Picture(np.ascontiguousarray(colour), alpha, gray, icc, exif)


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the file's bits per channel.

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
        raise BadImageError(f"has {bits} bits per channel or floats, expected unsigned 8 or 16 bits")
    if bits == 16 and tags.get(_TIFF_PHOTOMETRIC) not in (_BLACK_IS_ZERO, _RGB):
        raise BadImageError("is a 16-bit TIFF that is neither gray (black is zero) nor RGB: convert it first")
    return bits


def _decode_16_bit(image: Image.Image, data: bytes) -> tuple[Pixels, bool]:
    """Decode to (H, W, 1, 3 or 4) uint16, RGB, and whether it is gray."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None or array.dtype != np.uint16 or array.shape[:2] != (image.height, image.width):
        raise BadImageError("is a 16-bit image that OpenCV cannot decode")
    if array.ndim == 2:
        return array[:, :, None], True
    gray_with_alpha = image.format == "PNG" and data[25] == 4  # IHDR's colour type
    return array[:, :, [2, 1, 0, 3][: array.shape[2]]], gray_with_alpha


def _decode_8_bit(image: Image.Image) -> tuple[Pixels, bool]:
    """Decode to (H, W, 1, 2, 3 or 4) uint8, RGB, and whether it is gray."""
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        raise BadImageError(f"has pixels of kind {image.mode!r}, expected gray, palette, RGB or CMYK")
    gray = image.mode in ("1", "L", "LA", "La")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if transparent:  # only the conversion to RGBA applies the transparency of a palette or of a colour key
        array = np.asarray(image.convert("RGBA"))
        return (array[:, :, [0, 3]] if gray else array), gray
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return (array[:, :, None] if gray else array), gray


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert CMYK and other spaces to sRGB, by the embedded profile if there is one."""
    from PIL import ImageCms

    if icc and image.mode == "CMYK":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[return-value]
        except ImageCms.PyCMSError:
            pass  # a broken profile: viewers show the plain conversion then
    return image.convert("RGB")


def _split_exif(image: Image.Image, warn: Callable[[str], None]) -> tuple[int, bytes | None]:
    """Return EXIF's orientation, and EXIF without it."""
    # Pillow and OpenCV apply the orientation of a TIFF when they decode it, and its EXIF describes the old file.
    if image.format == "TIFF":
        return 1, None
    image.load()  # a truncated image fails here: reading the EXIF of a PNG decodes it
    orientation = 1
    try:
        exif = image.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        return orientation, exif.tobytes() if "exif" in image.info and len(exif) else None
    except Exception as error:  # Pillow's parser raises what it happens to meet: struct.error, KeyError, TypeError ...
        warn(f"EXIF is dropped: it is damaged ({type(error).__name__}: {error})")
        return orientation, None
