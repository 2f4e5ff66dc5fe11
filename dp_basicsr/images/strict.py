"""Read and write image files: 8 bit, BGR as in OpenCV; ambiguous files are refused."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.opening import TIFF_MARKS, opened, orientation_of, read_bytes, upright
from dp_basicsr.images.png import USUAL_COLOURS, without_remarks

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tifffile import TiffFile, TiffPage

# Per image: 16384 x 8192, 0.4 GB decoded; a few kilobytes of PNG can declare more. Loaders decode several at a time, so
# it is less than for upscaling.
MAX_PIXELS = 1 << 27

# End marks of a complete file. Some OpenCV versions decode a truncated file without an error.
_END_MARKS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}

# What chunks of PNG have for sRGB, in 1/100,000: gamma; white and primaries.
_SRGB = {b"gAMA": [45_455], b"cHRM": [31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000]}


def read_image(path: Path, of_16_bits: bool = False) -> NDArray[np.uint8]:
    """Read ``(H, W, 3)``, BGR, or gray ``(H, W)``, uint8, range [0, 255]. See ``decode_image``."""
    return decode_image(read_bytes(path), of_16_bits)


def decode_image(data: bytes | memoryview, of_16_bits: bool = False) -> NDArray[np.uint8]:
    """Decode the content of an image file; see ``read_image`` for the result.

    16-bit images, those with alpha, and files of several pictures are refused, because OpenCV would silently convert
    them or take the first. With ``of_16_bits`` the first give the 8 bits that BasicSR reads, if more than 12 are used.
    A fully opaque alpha channel is dropped. The EXIF orientation is applied, as in upscaling, and by OpenCV when
    BasicSR reads images.

    Raises:
        BadImageError: The data cannot be decoded, is truncated, has more than ``MAX_PIXELS`` (checked in the header,
            before decoding), or has several frames, an unsupported bit depth or number of channels.
    """
    data = bytes(data)
    for start, end in _END_MARKS.items():
        if data.startswith(start) and end not in data:
            raise BadImageError("is truncated")
    # First, because it refuses other formats and sizes by the header, before OpenCV decodes.
    orientation = orientation_if_single(data)
    buffer = np.frombuffer(without_remarks(data), np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if image is not None and data.startswith(b"BM") and image.ndim == 3:
            # The fourth byte is padding: a header of less than 56 bytes has no mask of alpha.
            image = image if data[14] >= 56 and image[..., 3:].any() else image[..., :3]
        if image is not None and not data.startswith(TIFF_MARKS):
            # For IMREAD_UNCHANGED OpenCV turns TIFFs alone, and otherwise misreads numbers of another type.
            image = upright(image, orientation)
    except cv2.error as error:  # e.g. more pixels than OpenCV allows
        raise BadImageError(f"is refused by OpenCV ({error.err})") from error
    if image is None:
        raise BadImageError("is not an image that OpenCV can decode: damaged, or a TIFF's compression, save it without")
    if data.startswith(TIFF_MARKS):
        with TiffFile(io.BytesIO(data)) as file:
            page: TiffPage = file.pages[0]  # type: ignore[assignment]
        is_lost = page.samplesperpixel > (1 if image.ndim == 2 else image.shape[2])
        if is_lost and page.planarconfig == 1:  # Pillow loses alpha in a plane of its own
            with opened(data, MAX_PIXELS) as (other, _), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as above
                is_lost = other.mode not in ("LA", "La") or np.asarray(other)[..., 1].min() < 255
        if is_lost:
            raise BadImageError("has alpha or data beside gray that OpenCV ignores: flatten it, or save gray alone")
    pixels: NDArray[Any] = image
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and (pixels[..., -1] == np.iinfo(pixels.dtype).max).all():
        pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3])
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    # Values of 12 bits would be almost black, and any result of them good.
    if of_16_bits and pixels.dtype == np.uint16 and channels in (1, 3) and not 0 < pixels.max() < 1 << 12:
        pixels = np.asarray(cv2.imdecode(buffer, cv2.IMREAD_ANYCOLOR))
    if pixels.dtype != np.uint8:
        raise BadImageError(
            f"has {8 * pixels.dtype.itemsize} bits per channel, expected 8: magick A -depth 8 B.png "
            "(of values of 12 bits, -evaluate multiply 16 -depth 8)"
        )
    if channels not in (1, 3):
        with opened(data, MAX_PIXELS) as (file, _):
            hidden = "a transparent value" if "transparency" in file.info else "alpha or a channel of data"
            kind = "gray with alpha" if file.mode == "LA" else f"colour with {hidden}"
        raise BadImageError(f"is {kind} (flatten it), expected gray or three colour channels without alpha")
    return pixels


def in_srgb(image: NDArray[np.uint8], *files: Path | None) -> NDArray[np.uint8]:
    """Return BGR or gray pixels in sRGB, by the ICC profile of the first of ``files`` that has one for them."""
    for data in (read_bytes(path) for path in files if path):
        with opened(data, MAX_PIXELS) as (file, _), suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(file.info.get("icc_profile", b"")))
            rgb, srgb = Image.fromarray(image[..., ::-1] if image.ndim == 3 else image), ImageCms.createProfile("sRGB")
            shown = np.asarray(ImageCms.profileToProfile(rgb, source, srgb, outputMode="RGB"))[..., ::-1]
            # sRGB's own profile changes pixels by rounding alone.
            is_other = np.abs(shown.astype(np.int16) - np.atleast_3d(image)).max() > 1
            return np.ascontiguousarray(shown) if is_other else image
    return image


def lost_colours(path: Path) -> str:
    """Say what a file tells of its colours that is not read, and what to do; "" if there is nothing."""
    image = read_image(path)
    with opened(read_bytes(path), MAX_PIXELS) as (file, _):
        chunks = dict(file.info.get("chunks", ()))
        is_other = in_srgb(image, path) is not image or chunks.get(b"cICP", b"\2\2")[:2] not in USUAL_COLOURS
        for name in _SRGB.keys() & chunks.keys() if not {b"sRGB", b"cICP"} & chunks.keys() else ():
            is_other |= max(abs(np.frombuffer(chunks[name], ">u4") - np.array(_SRGB[name], float))) > 1000
    if is_other:
        text = "a profile, gamma or primaries other than sRGB's are neither read nor kept"
        return f"{text}: convert images to sRGB (upscale keeps them)"
    is_keyed = image.ndim == 2 and "transparency" in file.info
    return "of gray with a transparent value the gray alone is read: flatten it" if is_keyed else ""


def has_georeference(path: Path) -> bool:
    """Return whether a file is a GeoTIFF."""
    with opened(read_bytes(path), MAX_PIXELS) as (file, _):
        return 34735 in getattr(file, "tag_v2", ())


def encode_png(image: NDArray[np.uint8], compression: int = 1) -> bytes:
    """Encode ``(H, W[, 3])`` BGR uint8 as PNG; ``compression`` is the zlib level, 0 to 9 (BasicSR's LMDBs: 1)."""
    # Without an explicit level, OpenCV uses level 1 with one filter for all rows instead of trying every filter on
    # each: twice as fast to write and faster to read on photographs, at about the same size.
    return encode(image, ".png", [] if compression == 1 else [cv2.IMWRITE_PNG_COMPRESSION, compression])


def encode(image: NDArray[np.uint8], suffix: str, parameters: list[int] | None = None) -> bytes:
    """Encode ``(H, W[, 3])`` BGR uint8 in the format named by ``suffix`` (".png", ".bmp")."""
    success, data = cv2.imencode(suffix, image, parameters or [])
    if not success:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as {suffix}")
    return data.tobytes()


def orientation_if_single(data: bytes) -> int:
    """Return EXIF's orientation; a file of several pictures, or of which OpenCV loses something, is a BadImageError."""
    with warnings.catch_warnings():
        # Pillow warns about large images, and about files that are refused here.
        warnings.simplefilter("ignore")
        with opened(data, MAX_PIXELS) as (image, _):
            if image.mode == "CMYK":
                raise BadImageError("is CMYK, whose profile OpenCV ignores: convert it to RGB")
            if image.format == "BMP" and not image.tile[0][3][0].startswith(("BGR", "P", "L", "1")):  # type: ignore[attr-defined]
                raise BadImageError("has masks that OpenCV ignores: save it as PNG")
            if image.format == "TIFF" and image.tile[0][3][0].rstrip("IR") in ("L;2", "L;4", "P;1", "P;2"):  # type: ignore[attr-defined]
                raise BadImageError("is a TIFF of bits that OpenCV misreads or does not read: save it as PNG")
            # Pillow opens it since version 13.
            if image.format == "TIFF" and image.mode == "L" and image.tag_v2.get(277, 1) > 1:  # type: ignore[attr-defined]
                raise BadImageError("is a TIFF of other channels or values than gray or colours")
            return orientation_of(image)


def size_text(image: NDArray[Any]) -> str:
    """Format the size as ``width x height``, like image viewers."""
    return f"{image.shape[1]} x {image.shape[0]}"
