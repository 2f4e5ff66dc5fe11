"""Write images atomically, without silent losses.

8-bit images go through Pillow, 16-bit PNG through OpenCV, and TIFF through tifffile.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.images.files import FORMATS, QUALITY, BadImageError
from dp_basicsr.images.metadata import Metadata, Picture, fitted
from dp_basicsr.images.opening import LACKING, PILLOW
from dp_basicsr.images.png import join
from dp_basicsr.images.strict import encode
from dp_basicsr.utils.atomic_io import replacing
from dp_basicsr.utils.pool import CGROUP
from dp_basicsr.utils.tiles import Pixels

import numpy as np
import tifffile
from PIL import Image

WITH_ALPHA = ("PNG", "WEBP", "TIFF")
WITH_16_BITS = ("PNG", "TIFF")
# A container's limit of memory, and what holds its use without caches, of Linux's control groups of version 2 and 1.
LIMITS = (("memory.max", "memory.stat"), ("memory/memory.limit_in_bytes", "memory/memory.stat"))
_LARGEST = 2**32 - 2**25  # bytes of pixels in BMP and plain TIFF, whose places are numbers of 32 bits
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500, "PNG": 1_000_000}  # PNG's is libpng's, which most programs read with


def refuse_unwritable(kind: str, width: int, height: int, alpha: Pixels | None) -> None:
    """Raise a BadImageError if no file of format ``kind`` can hold such a picture: before it is computed.

    An alpha that hides nothing is left out where the format has none.
    """
    if kind in LACKING:
        raise BadImageError(f"cannot be written as {kind}, which this Pillow was built without: {PILLOW}")
    if kind not in WITH_ALPHA and alpha is not None and (alpha < np.iinfo(alpha.dtype).max).any():
        raise BadImageError(f"has transparency, which {kind} cannot keep: give --ext png or --alpha drop")
    if max(width, height) > LONGEST_SIDE.get(kind, max(width, height)):
        raise BadImageError(
            f"would become {width} x {height}, and {kind} ends at {LONGEST_SIDE[kind]} pixels: give --ext "
            f"{'tif' if kind == 'PNG' else 'png'}"
        )
    if kind == "BMP" and 3 * width * height > _LARGEST:
        raise BadImageError(f"would become {width} x {height}, and BMP ends at 4 GB: give --ext png")


def refuse_without_memory(width: int, height: int, colour: Pixels, alpha: Pixels | None = None) -> None:
    """Raise a BadImageError if such a picture, not yet computed, takes more memory than is free: Linux would kill."""
    # No such file, or not what is available, as in WSL 1.
    with contextlib.suppress(OSError, KeyError), open("/proc/meminfo", encoding="ascii") as file:
        found = dict(re.findall(r"(MemAvailable|SwapFree): *(\d+)", file.read()))
        free, swap = 1024 * int(found["MemAvailable"]), 1024 * int(found.get("SwapFree", 0))
        for limit, use in LIMITS:
            with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
                used = re.findall(r"^(?:anon|rss) (\d+)", (CGROUP / use).read_text(), re.MULTILINE)
                free = min(free, max(0, int((CGROUP / limit).read_text()) - sum(map(int, used))))
        # Encoding makes a copy.
        if (needed := 2 * width * height * colour.itemsize * (3 if alpha is None else 4)) > free + swap:
            text = f"{needed / 1e9:.1f} GB of memory ({(free + swap) / 1e9:.1f} are free)"
            raise BadImageError(
                f"would become {width} x {height}, which takes {text}: give a smaller --outscale, or parts"
            )


def write_picture(
    picture: Picture, path: str | Path, quality: int = QUALITY, warn: Callable[[str], None] = warnings.warn
) -> None:
    """Write a picture atomically, in the format of the path's suffix.

    Args:
        picture: 16 bits stay 16 in PNG and TIFF and are rounded to 8 in other formats.
        path: See ``FORMATS``.
        quality: Of JPEG and WebP; WebP is lossless at 100.
        warn: Is called with the names of what is not in the file.

    Raises:
        BadImageError: See ``refuse_unwritable``.
        OSError: The disk refuses. An earlier file at ``path`` is intact.
    """
    path = Path(path)
    # First, so that a picture that cannot be encoded creates nothing.
    data = encode_picture(picture, path.suffix, quality, warn)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, f".{os.getpid()}") as beside, beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def encode_picture(
    picture: Picture, suffix: str, quality: int = QUALITY, warn: Callable[[str], None] = warnings.warn
) -> bytes:
    """Encode a picture in the format of ``suffix``; see ``write_picture``."""
    if suffix.lower() not in FORMATS:
        raise UserError(f"expected a name that ends in {', '.join(FORMATS)}, got {suffix or 'no suffix'}")
    kind = FORMATS[suffix.lower()]
    height, width = picture.colour.shape[:2]
    refuse_unwritable(kind, width, height, picture.alpha)
    picture = picture if kind in WITH_ALPHA else replace(picture, alpha=None)
    is_deep = picture.colour.dtype == np.uint16
    # 16-bit gray with alpha is stacked as colour: hardly any program reads it as two channels.
    is_gray = picture.gray and not (is_deep and picture.alpha is not None)
    channels = picture.colour[:, :, :1] if is_gray else picture.colour
    if picture.alpha is not None:
        channels = np.concatenate([channels, picture.alpha[:, :, None]], axis=2)
    channels = channels[:, :, 0] if channels.shape[2] == 1 else channels
    metadata, dropped = fitted(picture.metadata, kind, (width, height), is_gray)
    if is_deep and kind not in WITH_16_BITS:
        # Rounded: 65535 is 257 * 255.
        channels = ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        dropped.append(f"16 bits, {kind} has 8")
    is_lossy = kind == "JPEG" or (kind == "WEBP" and quality < 100)
    # Who gives another format knows; a name may be that of a lossy one.
    if is_lossy and metadata.is_lossless and FORMATS.get(Path(metadata.name).suffix.lower()) == kind:
        dropped.append(f"lossless coding, which {'--ext png' if kind == 'JPEG' else '--quality 100'} keeps")
    if dropped:
        warn(f"dropped: {', '.join(dropped)}")
    channels = np.ascontiguousarray(channels)
    if kind == "TIFF":
        return _encode_tiff(channels, picture.alpha is not None, metadata)
    if kind == "PNG":
        return _encode_png(channels, metadata)
    return _encode_by_pillow(channels, kind, quality, metadata)


def _encode_tiff(channels: Pixels, has_alpha: bool, metadata: Metadata) -> bytes:
    file = io.BytesIO()
    # tifffile takes the bytes of fractions (types 5 and 10) for twice as many.
    whole = {kind: metadata.order + numbers for kind, numbers in ((5, "u4"), (10, "i4"))}
    tags = [
        *(
            (code, kind, count, np.frombuffer(data, whole[kind]).tolist() if kind in whole else data, once)
            for code, kind, count, data, once in metadata.tags
        ),
        *((code, 7, len(data), data, True) for code, data in ((700, metadata.xmp), (33723, metadata.iptc)) if data),
    ]
    tifffile.imwrite(
        file,
        channels,
        bigtiff=channels.nbytes > _LARGEST,
        byteorder=metadata.order,
        photometric="minisblack" if channels.ndim == 2 or channels.shape[2] == 2 else "rgb",
        extrasamples=["unassalpha"] if has_alpha else None,
        planarconfig="contig" if channels.ndim == 3 else None,
        compression="adobe_deflate",
        predictor=True,
        iccprofile=metadata.icc,
        resolution=metadata.density or metadata.pixel,
        resolutionunit=metadata.unit if metadata.density else 1,
        metadata=None,
        software=False,
        extratags=tags,
    )
    return file.getvalue()


def _encode_png(channels: Pixels, metadata: Metadata) -> bytes:
    chunks = list(metadata.chunks)
    if metadata.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.density:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(count / 0.0254) for count in metadata.density), 1)))
    if metadata.comment:
        chunks.append((b"tEXt", b"Comment\0" + metadata.comment.replace(b"\0", b" ")))
    if channels.dtype == np.uint8:
        file = io.BytesIO()
        # Twice as fast as the default 6, 3 % larger.
        Image.fromarray(channels).save(file, "PNG", compress_level=3)
        return join(file.getvalue(), chunks)
    bgr = channels if channels.ndim == 2 else channels[:, :, [2, 1, 0, 3][: channels.shape[2]]]
    return join(encode(bgr, ".png"), chunks)


def _encode_by_pillow(channels: Pixels, kind: str, quality: int, metadata: Metadata) -> bytes:
    # Without one Pillow writes 96 into a BMP.
    options: dict[str, Any] = {"dpi": metadata.density or (0, 0)}
    if kind in ("JPEG", "WEBP"):
        options |= {"quality": quality, "icc_profile": metadata.icc or b"", "exif": metadata.exif or b""}
        options |= {"xmp": metadata.xmp} if metadata.xmp else {}
    if kind == "WEBP":
        # Exact: colours under full transparency stay, too.
        options |= {"lossless": quality == 100, "exact": True}
    if kind == "JPEG":
        # Colour at full resolution: Pillow's default halves it.
        options |= {"subsampling": 0, "comment": metadata.comment or b""}
        # Only JPEG's block begins with this mark.
        options["exif"] = b"Exif\0\0" + metadata.exif if metadata.exif else b""
        if iptc := metadata.iptc:
            # As Photoshop writes it: the name is empty, and the content is padded to an even length.
            segment = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    file = io.BytesIO()
    try:
        Image.fromarray(channels).save(file, kind, **options)
    except (OSError, ValueError) as error:
        height, width = channels.shape[:2]
        raise BadImageError(f"of {width} x {height} cannot be written as {kind} ({error})") from error
    if kind == "JPEG" and metadata.density:
        file.getbuffer()[13] = metadata.unit - 1  # JFIF's number of it, where Pillow writes that of inches
    return file.getvalue()
