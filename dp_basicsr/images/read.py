"""Read images of all common types without silent losses.

8-bit images go through Pillow. Pillow silently reduces 16-bit colour to 8 bits, so OpenCV reads that; both refuse or
confuse kinds of TIFF, so tifffile reads what it can without further libraries.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.metadata import Metadata, Picture, metadata_of, metadata_of_tiff
from dp_basicsr.images.opening import (
    ORIENTATION,
    TIFF_MARKS,
    damage_is_refused,
    opened,
    orientation_of,
    read_bytes,
    refuse_frames,
    refuse_size,
    upright,
)
from dp_basicsr.images.png import USUAL_COLOURS
from dp_basicsr.utils.tiles import Pixels

import cv2
import numpy as np
from PIL import Image, ImageCms
from tifffile import TiffFile, TiffPage

MAX_PIXELS = 1 << 30  # OpenCV's limit, 3 GB decoded; deploy/run.py switches Pillow's lower one off

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6  # photometric interpretations
_CONVERTED = (5, 8, 9, 10)  # those of inks and of Lab
_PLAIN_COMPRESSIONS = (1, 8, 32946, 32773)  # none, deflate, PackBits: tifffile needs imagecodecs for others
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF: 8 or 16 bits, gray, palette, colour or CMYK, with or without alpha.

    A palette becomes RGB, black and white becomes gray, CMYK becomes sRGB by its profile. EXIF's orientation is
    applied.

    Raises:
        BadImageError: Not an image, damaged, more pixels than ``max_pixels``, or unsupported: several frames, floats,
            32 bits.
    """
    data = read_bytes(path := Path(path))
    if data.startswith(TIFF_MARKS):
        with damage_is_refused(), TiffFile(io.BytesIO(data)) as file:
            picture = _read_tiff(file, data, max_pixels)
    else:
        with opened(data, max_pixels) as (image, pixels):
            picture = _read(image, pixels)
    return replace(picture, metadata=replace(picture.metadata, name=path.name))


def _read(image: Image.Image, data: bytes) -> Picture:
    image.load()  # a truncated one fails here
    orientation = orientation_of(image)
    depth, kind = 8, -1
    if image.format == "PNG":
        # Bit depth and colour type of IHDR, behind signature, length, name, width and height.
        depth, kind = data[24:26]
    elif image.format == "AVIF":
        # The third byte of a configuration of AV1 has the flags high_bitdepth and twelve_bit; pictures may differ.
        flags = [data[match.end() + 2] for match in re.finditer(b"av1C", data[: data.find(b"mdat")])]
        depth = max((12 if flag & 0x20 else 10 if flag & 0x40 else 8 for flag in flags), default=8)
        # Primaries and transfer of the colours; a PNG's chunk adds that it holds RGB, of the full range.
        kinds = re.search(b"colrnclx\0(.)\0(.)", data[: data.find(b"mdat")], re.DOTALL)
        if kinds and b"".join(kinds.groups()) not in USUAL_COLOURS and "icc_profile" not in image.info:
            image.info["chunks"] = [(b"cICP", b"".join(kinds.groups()) + b"\0\1")]
    elif image.format == "BMP":
        image.info.update(_colours_of_bmp(data))
    key = image.info.get("transparency")
    if depth < 8 and kind == 0 and key is not None and image.mode == "L":
        # Pillow scales the pixels to 8 bits, but not the transparent value.
        image.info["transparency"] = key * (255 // (2**depth - 1))
    try:
        array = _decode_8_bit(image) if depth <= 8 else _decode_by_opencv(data, np.uint16)
    except BadImageError:
        if image.format != "AVIF":
            raise
        # Not every OpenCV reads AVIF.
        array = _decode_8_bit(image)
        image.info["rest"] = [f"{depth} bits, read as 8"]
    if array.dtype == np.uint16 and depth < 16:
        # The highest bits again below, so that white is 65535.
        array = np.left_shift(array, 16 - depth) | np.right_shift(array, 2 * depth - 16)
    if depth == 16 and array.shape[2] == 1 and key is not None:
        # OpenCV ignores the transparent value of gray.
        array = np.dstack([array, np.where(array == key, 0, 65535).astype(np.uint16)])
    array = upright(array, orientation)
    is_gray = kind in (0, 4) if depth == 16 else array.shape[2] < 3
    return _picture(array, is_gray, metadata_of(image, array.shape[1::-1], data, orientation))


def _colours_of_bmp(data: bytes) -> dict[str, Any]:
    """Return by ``_read``'s names what a BMP's header of version 4 or 5 says of its colours, which Pillow ignores."""
    version, kind = data[14], data[70:74]
    if version == 124 and kind == b"DEBM":
        start, size = struct.unpack_from("<II", data, 126)
        return {"icc_profile": data[14 + start :][:size]}
    # Most programs that write kind 0 leave primaries and gamma empty.
    is_calibrated = version in (108, 124) and kind == bytes(4) and any(data[74:122])
    is_linked = version == 124 and kind == b"KNIL"
    return {"rest": ["primaries and gamma"] * is_calibrated + ["link to a profile"] * is_linked}


def _decode_by_opencv(data: bytes, dtype: type[np.unsignedinteger[Any]]) -> Pixels:
    """Decode to (H, W, 1, 3 or 4) of this type, gray or RGB."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != dtype:
        raise BadImageError(
            f"is a {8 * dtype().itemsize}-bit image that OpenCV cannot decode: damaged, or a TIFF's compression, save "
            "it without"
        )
    return array[:, :, None] if array.ndim == 2 else array[:, :, [2, 1, 0, 3][: array.shape[2]]]


def _decode_8_bit(image: Image.Image) -> Pixels:
    """Decode to (H, W, 1, 2, 3 or 4) uint8, gray or RGB."""
    if image.mode in ("CMYK", "LAB"):
        # Popped, because the profile does not hold for the result.
        icc = image.info.pop("icc_profile", None)
        try:
            is_lab = image.mode == "LAB"
            source = ImageCms.createProfile("LAB") if is_lab else ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[assignment]
        except (ImageCms.PyCMSError, OSError):
            # As viewers show a picture without a profile, or with a broken one.
            image = image.convert("RGB")
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        raise BadImageError(f"has pixels of kind {image.mode!r}, expected gray, palette, RGB or CMYK")
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # Only the conversion to RGBA applies the transparency of a palette or of a colour key.
        array = np.asarray(image.convert("RGBA"))
        return array[:, :, [0, 3]] if is_gray else array
    array = np.asarray(image.convert("L" if is_gray else "RGB"))
    return array[:, :, None] if is_gray else array


def _read_tiff(file: TiffFile, data: bytes, max_pixels: int) -> Picture:
    refuse_frames(file)
    page: TiffPage = file.pages[0]  # type: ignore[assignment]
    refuse_size(page.imagewidth, page.imagelength, max_pixels)
    bits, orientation = page.bitspersample, page.tags.valueof(274, 0)
    orientation = orientation[0] if isinstance(orientation, bytes) else orientation  # some files have a byte
    # Some programs write no sizes of the strips; tifffile has one then, Pillow finds them.
    is_sized = len(page.dataoffsets) == len(page.databytecounts)
    is_plain = is_sized and page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and bits in (8, 16)
    further = 0
    # Pillow takes it for four channels, and so for truncated.
    is_ycbcr = is_sized and page.photometric == _YCBCR and page.compression == 1
    if is_ycbcr or (is_plain and page.compression in _PLAIN_COMPRESSIONS):
        # OpenCV and tifffile would fill missing segments.
        segments = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(size == 0 or start + size > len(data) for start, size in segments):
            raise BadImageError("is truncated")
    if is_ycbcr:
        # OpenCV turns it upright.
        array = _decode_by_opencv(data, np.uint8)
    elif is_plain and page.compression in _PLAIN_COMPRESSIONS:
        if page.compression in (1, 32773):
            # Only LZW and deflate have one, whatever a tag that was copied says, as in libtiff.
            page.predictor = 1
        # (planes, H, W, channels): either planes or channels is 1.
        planes = page.asarray(squeeze=False)[:, 0]
        samples = np.moveaxis(planes, 0, 2).reshape(*planes.shape[1:3], -1)
        array, further = _without_extras(upright(samples, orientation), page)
    elif bits == 16:
        # Of other kinds OpenCV silently makes something else.
        counts = {_BLACK_IS_ZERO: (1,), _RGB: (3, 4)}.get(page.photometric, ())
        if page.samplesperpixel not in counts or page.planarconfig != 1:
            raise BadImageError(
                "is a 16-bit TIFF of other kinds or planes: convert it first, to gray or RGB without compression"
            )
        array, further = _without_extras(_decode_by_opencv(data, np.uint16), page)
    else:
        with opened(data, max_pixels) as (image, _):
            # Pillow applies the orientation itself, even that of XMP, and makes associated alpha straight.
            image.getexif()[ORIENTATION] = orientation
            image.load()
            # Old programs wrote colours of 8 bits for 16, which OpenCV notices, and Pillow shows as black.
            if image.mode == "P" and page.colormap is not None and page.colormap.max() < 256:
                image.putpalette(page.colormap.T.astype(np.uint8).tobytes())
            if image.mode == "LA" and page.planarconfig != 1:
                # Pillow loses its alpha.
                raise BadImageError("is a TIFF of gray and alpha in planes: save it without compression")
            array = _decode_8_bit(image)
            further = len(page.extrasamples) - (array.shape[2] in (2, 4))
    metadata = metadata_of_tiff(page, data, array.shape[1::-1], orientation)
    # Nor does the profile of inks or Lab hold for a TIFF's result.
    icc = None if page.photometric in _CONVERTED else metadata.icc
    dropped = [*metadata.dropped, *([f"{further} further channels"] if further > 0 else [])]
    return _picture(array, array.shape[2] < 3, replace(metadata, icc=icc, dropped=tuple(dropped)))


def _without_extras(samples: Pixels, page: TiffPage) -> tuple[Pixels, int]:
    """Return gray or RGB with straight alpha, if there is any, and the number of further channels."""
    count, top = 3 if page.photometric == _RGB else 1, np.iinfo(samples.dtype).max
    # A fourth channel that nothing explains is alpha, as in Pillow and OpenCV.
    kinds = page.extrasamples or ((_UNASSOCIATED,) if samples.shape[2] == 4 and count == 3 else ())
    # The one that the colours were multiplied by, otherwise the first; none is empty.
    kind = _ASSOCIATED if _ASSOCIATED in kinds else _UNASSOCIATED
    place = count + [*kinds, kind].index(kind)
    colour, alpha = samples[:, :, :count], samples[:, :, place : place + 1]
    colour = top - colour if page.photometric == _WHITE_IS_ZERO else colour
    if kind == _ASSOCIATED:
        straight = np.minimum(colour.astype(np.uint32) * top // np.maximum(alpha, 1), top)
        colour = np.where(alpha == 0, colour, straight.astype(samples.dtype))
    # Without alpha no copy, which may be of gigabytes.
    array = np.concatenate([colour, alpha], axis=2) if alpha.size else colour
    return array, samples.shape[2] - count - alpha.shape[2]


def _picture(array: Pixels, is_gray: bool, metadata: Metadata) -> Picture:
    """Make a picture of (H, W, 1 to 4): gray or RGB, with or without alpha."""
    colour = array[:, :, :1].repeat(3, axis=2) if array.shape[2] < 3 else array[:, :, :3]
    alpha = array[:, :, -1] if array.shape[2] in (2, 4) else None
    return Picture(np.ascontiguousarray(colour), alpha, is_gray, metadata)
