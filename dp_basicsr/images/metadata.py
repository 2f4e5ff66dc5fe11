"""A picture, and what its file knows about it: kept, corrected for another size, or named as dropped."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from xml.parsers.expat import ExpatError

from dp_basicsr.images import exif, xmp
from dp_basicsr.images.opening import end_of_webp, webp_chunks
from dp_basicsr.images.png import Chunk, name_of
from dp_basicsr.utils.tiles import Pixels

import numpy as np
from PIL import Image
from tifffile import TIFF, TiffPage

Tag = tuple[int, int, int, bytes, bool]  # of TIFF, in tifffile's form: code, type, count, bytes, True

# What each format can hold, by the names of `Metadata`; in a marker of JPEG, so many bytes at most.
_HOLDS = {
    "PNG": {"icc", "exif", "xmp", "density", "comment", "chunks"},
    "JPEG": {"icc", "exif", "xmp", "density", "comment", "iptc"},
    "WEBP": {"icc", "exif", "xmp"},
    "TIFF": {"icc", "xmp", "density", "pixel", "iptc", "tags"},
    "BMP": {"density"},
}
_TITLES = {
    "icc": "ICC profile", "exif": "EXIF", "xmp": "XMP", "density": "density", "comment": "comment", "iptc": "IPTC",
    "chunks": "", "tags": "", "pixel": "size or shape of a pixel",
}  # fmt: skip
_LONGEST = {"exif": 65_527, "xmp": 65_504, "iptc": 65_500, "comment": 65_533}
_DENSEST = {"JPEG": 65_535, "PNG": 1e8, "BMP": 5e7}
# Segments of JPEG that are read, or belong to its code.
_READ = (b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"Adobe\0", b"Photoshop 3.0\0")
_WEBP = (b"VP8X", b"VP8L", b"VP8 ", b"ALPH", b"ICCP", b"EXIF", b"XMP ")  # its chunks that are read
_IPTC_IN_PHOTOSHOP = 0x0404
_END = 0xD9  # JPEG's last marker
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within the pixels 0xff is followed by 0, or restarts
# Tags of TIFF that say how its pixels are stored, and density: the new file has its own.
_STORAGE = {
    *range(254, 260), *range(262, 267), 273, 274, *range(277, 280), *range(282, 285), *range(288, 294), 296, 317, 320,
    *range(322, 326), 338, 339, 347, *range(512, 522), 530, 532,
}  # fmt: skip
_LEFT_OUT = {
    330: "further pictures", 34377: "Photoshop's resources", 34665: "EXIF", 34853: "GPS", 37724: "layers",
    50706: "DNGVersion", 50707: "DNGBackwardVersion",  # which make it a raw photograph for other programs
    52545: "C2PA",  # content credentials, which are signed for the old pixels
}  # fmt: skip
_GEO_TAGS, _MATRIX, _GEO_KEYS = (33550, 33922, 34264, 50844), 34264, 34735
_FROM_CENTRES = (1025, 0, 1, 2)  # among GeoTIFF's keys: its places are those of pixels' centres, not of their corners
_DOUBLE, _NODATA = 12, 42113  # a type of tags, and GDAL's tag: text, of some programs as 0.0 or 2.55e+002
_NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_UNITS = {2: 1.0, 3: 2.54}  # of a density: inch, centimetre
_GDAL, _STATISTICS = 42112, re.compile(rb'<Item name="STATISTICS_[^>]*>[^<]*</Item>')  # of the old pixels
_OF_PIXELS = re.compile(r'\{"shape"|(<\?xml.*)?<OME', re.DOTALL)  # descriptions of the old pixels: tifffile's, OME's


@dataclass(frozen=True)
class Metadata:
    """What is known about a picture."""

    size: tuple[int, int] = (1, 1)  # width and height, upright
    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # the block without its mark, as it was
    xmp: bytes | None = None  # Adobe's XML
    density: tuple[float, float] | None = None  # pixels per inch, horizontally and vertically
    unit: Literal[2, 3] = 2  # in which a JPEG or TIFF has it, see _UNITS
    pixel: tuple[float, float] | None = None  # pixels per unit that ImageJ's description names, or only their shape
    comment: bytes | None = None  # of JPEG or GIF
    iptc: bytes | None = None  # captions of the press
    chunks: tuple[Chunk, ...] = ()  # of PNG, which no other format can hold
    tags: tuple[Tag, ...] = ()  # of TIFF
    order: Literal["<", ">"] = "<"  # of the bytes in `tags`
    orientation: int = 0  # of the file, by EXIF; 0: none
    dropped: tuple[str, ...] = ()  # names of what was not read
    is_lossless: bool = False  # in the format of its name it is expected to stay so
    name: str = ""  # of the file
    nodata: float | None = None  # the value of pixels without data in a TIFF of GDAL
    first_place: float = 0.0  # from the corner of the picture to where GeoTIFF counts its pixels from


@dataclass(frozen=True)
class Picture:
    """An image as a file holds it."""

    colour: Pixels  # (H, W, 3), RGB, uint8 or uint16; upright (EXIF's orientation is applied)
    alpha: Pixels | None = None  # (H, W) of the same type
    gray: bool = False  # the three channels are equal, and one is written
    metadata: Metadata = field(default_factory=Metadata)


def metadata_of(image: Image.Image, size: tuple[int, int], data: bytes, orientation: int) -> Metadata:
    """Return the metadata of a file other than TIFF, whose upright picture has a (width, height)."""
    info, dropped, comment, iptc = image.info, list(image.info.get("rest", ())), image.info.get("comment"), None
    block = info.get("exif") or info.get("exif_of_text", b"")
    # Pillow leaves it in a GIF, where a trailer of 258 bytes follows it.
    xml = data.partition(b"XMP DataXMP")[2].partition(b"\1\xff\xfe\xfd")[0] if image.format == "GIF" else None
    # Without JFIF's, whose unit 0 is a shape of pixels, Pillow takes EXIF's horizontal one for both, or makes up 72.
    dpi = info.get("dpi") if image.format in ("PNG", "BMP") or info.get("jfif_unit") else None
    density, shape = (_upright(sides, orientation) for sides in (dpi or _density_of(block), info.get("jfif_density")))
    end = len(data)
    if image.format in ("JPEG", "MPO"):
        segments = image.applist  # type: ignore[attr-defined]
        comment = b"\n".join(content for name, content in segments if name == "COM")
        others = [(name, content) for name, content in segments if name != "COM" and not content.startswith(_READ)]
        dropped += [f"{name} {content.partition(bytes(1))[0][:40].decode('latin-1')!r}" for name, content in others]
        resources = dict(info.get("photoshop", {}))
        iptc = resources.pop(_IPTC_IN_PHOTOSHOP, None)
        dropped += ["Photoshop's resources"] if resources else []
        found = _MARKER.search(data, 2)
        while found and found[0][1] != _END:
            # Behind a marker stand the length of its segment, the segment, and anything that decoders skip.
            found = _MARKER.search(data, found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big"))
        end = found.end() if found else end  # of the picture: behind it stand films, maps of gains and previews
    chunks = webp_chunks(data) if image.format == "WEBP" else []
    dropped += [name.decode("latin-1") for name in chunks if name not in _WEBP]
    # PNG's are named with its chunks.
    behind = len(data[end_of_webp(data) if chunks else end :].rstrip(b"\0"))
    dropped += [f"{behind:,} bytes after the picture"] if behind else []
    return Metadata(
        size, info.get("icc_profile"), block.removeprefix(b"Exif\0\0"), info.get("xmp") or xml or None,
        density if all(density or [0]) else None,  # a BMP's of 0 is none
        unit=3 if info.get("jfif_unit") == 2 else 2,
        pixel=None if info.get("jfif_unit", 1) else _pixel(shape),
        comment=comment, iptc=iptc, chunks=tuple(info.get("chunks", ())), orientation=orientation,
        dropped=tuple(dropped),
        is_lossless=image.format in ("PNG", "BMP") or b"VP8L" in chunks,
    )  # fmt: skip


def _density_of(block: bytes | None) -> tuple[float, float] | None:
    """Return the density that EXIF has."""
    exif = Image.Exif()
    with suppress(Exception):  # Pillow's parser raises anything on broken EXIF
        exif.load(block or b"")
        across, down = (_UNITS[exif.get(296, 2)] * float(exif[code]) for code in (282, 283))
        return (across, down) if across > 0 < down else None
    return None


def _upright(sides: Any, orientation: int) -> Any:
    return sides and (sides[::-1] if orientation > 4 else sides)


def _pixel(sides: tuple[float, float], has_unit: bool = False) -> tuple[float, float] | None:
    return sides if all(sides) and (has_unit or sides[0] != sides[1]) else None


def metadata_of_tiff(page: TiffPage, data: bytes, size: tuple[int, int], orientation: int) -> Metadata:
    """Return the metadata of a TIFF file, whose upright picture has a (width, height)."""
    tags = {
        tag.code: (tag.code, int(tag.dtype), tag.count, data[tag.valueoffset :][: tag.valuebytecount], True)
        for tag in page.tags.values()
    }
    dropped = [name for code, name in _LEFT_OUT.items() if tags.pop(code, None)]
    dropped += ["mask"] if any(further.is_mask for further in page.parent.pages[1:]) else []  # type: ignore[union-attr]
    icc, xml, iptc = (tags.pop(code)[3] if code in tags else None for code in (34675, 700, 33723))
    keys = page.tags.valueof(_GEO_KEYS, ())
    # GeoTIFF's keys come in fours. Neither a turn nor a matrix for centres is a mere scaling.
    is_of_centres = _FROM_CENTRES in [keys[start : start + 4] for start in range(0, len(keys), 4)]
    left_out = _GEO_TAGS if orientation > 1 else [_MATRIX] if is_of_centres else []
    dropped += [TIFF.TAGS[code] for code in left_out if tags.pop(code, None)]
    if _GDAL in tags and _STATISTICS.search(text := tags[_GDAL][3]):
        tags[_GDAL] = (*tags[_GDAL][:3], _STATISTICS.sub(lambda item: b" " * len(item[0]), text), True)
        dropped.append("GDAL's statistics of the old pixels")
    if _OF_PIXELS.match(page.description):
        dropped += ["ImageDescription of the old pixels"] if tags.pop(270, None) else []
    unit, shares = page.tags.valueof(296, 2), [page.tags.valueof(code, (0, 0)) for code in (282, 283)]
    sides = _upright([part / whole if whole else 0 for part, whole in shares], orientation)
    density = (_UNITS[unit] * sides[0], _UNITS[unit] * sides[1]) if unit in _UNITS and all(sides) else None
    pixel = _pixel(sides, page.description.startswith("ImageJ=")) if unit == 1 else None
    copied = tuple(tag for code, tag in tags.items() if code not in _STORAGE)
    nodata = str(page.tags.valueof(_NODATA, "")).strip("\0 ")
    return Metadata(
        size, icc, xmp=xml, density=density, pixel=pixel, iptc=iptc, tags=copied,
        unit=3 if unit == 3 else 2,
        order=page.parent.byteorder,  # type: ignore[arg-type]
        orientation=orientation, dropped=tuple(dropped), nodata=float(nodata) if _NUMBER.fullmatch(nodata) else None,
        is_lossless=page.compression not in (6, 7),  # JPEG
        first_place=0.5 if is_of_centres else 0.0,
    )  # fmt: skip


def fitted(metadata: Metadata, kind: str, size: tuple[int, int], is_gray: bool) -> tuple[Metadata, list[str]]:
    """Return what a file of format ``kind`` can hold, corrected for another size, and the names of the rest."""
    fields, dropped = dict[str, Any](), list(metadata.dropped)
    for name, title in _TITLES.items():
        value = fields[name] = getattr(metadata, name)
        is_long = kind == "JPEG" and name in _LONGEST and len(value or b"") > _LONGEST[name]
        is_beyond = name == "density" and value and not 1 <= min(value) <= max(value) <= _DENSEST.get(kind, 2**32 - 1)
        if not value or (name in _HOLDS[kind] and not is_long and not is_beyond):
            continue
        fields[name] = () if name in ("chunks", "tags") else None
        if name == "chunks":
            dropped += map(name_of, value)
        elif name == "tags":
            dropped += (TIFF.TAGS[tag[0]] for tag in value)
        # Not if EXIF keeps it.
        elif name != "density" or not np.allclose(value, _density_of(fields["exif"]) or 0, 1e-3):
            dropped.append(f"{title} of {len(value):,} bytes (JPEG holds 64 KB)" if is_long else title)
    # A profile is for the colours of the file, and WebP stores gray as RGB.
    icc = fields["icc"] or b""
    is_cut = int.from_bytes(icc[:4], "big") > len(icc)  # its length
    if icc and (is_cut or icc[16:20] != (b"GRAY" if is_gray and kind != "WEBP" else b"RGB ")):
        what = icc[16:20].decode("latin-1").strip() or "nothing"
        dropped.append("damaged ICC profile" if is_cut else f"ICC profile for {what}")
        fields["icc"] = None
    correct_xmp = partial(xmp.corrected, orientation=metadata.orientation)
    for name, corrected in (("exif", exif.corrected), ("xmp", correct_xmp)):
        if fields[name]:
            try:
                fields[name], left_out = corrected(fields[name], metadata.size, size)
                dropped += left_out
            except (struct.error, KeyError, ExpatError, RecursionError):
                dropped.append(f"damaged {_TITLES[name]}")
                fields[name] = None
    # Pixels get smaller by what the picture grows; points in it move apart.
    across, down = (new / old for new, old in zip(size, metadata.size, strict=True))
    if fields["density"] and kind in ("JPEG", "TIFF"):
        sides = tuple(count / _UNITS[metadata.unit] for count in fields["density"])
        # JPEG has whole numbers: 118.11 per centimetre are 300 per inch.
        is_exact = kind == "TIFF" or np.allclose(sides, np.round(sides), 1e-6)
        fields |= {"density": sides} if is_exact else {"unit": 2}
    if fields["pixel"]:
        fields["pixel"] = (fields["pixel"][0] * across, fields["pixel"][1] * down)
    # Factors of a pixel's size, of points in the picture and on the map, of a matrix, and of RPC's offsets and scales;
    # and from where columns and rows count: RPC's from the first pixel's centre.
    first, ones, zeros = metadata.first_place, (1,) * 83, (0,) * 83
    geo = {
        33550: ((1 / across, 1 / down, 1), (0,)), 33922: ((across, down, 1, 1, 1, 1), (first, first, 0, 0, 0, 0)),
        _MATRIX: ((1 / across, 1 / down, 1, 1), (0,)),
        50844: ((1, 1, down, across, 1, 1, 1, down, across, *ones), (0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, *zeros)),
    }  # fmt: skip
    tags, dtype = list[Tag](), metadata.order + "f8"
    for code, kind_of_tag, count, data, once in fields["tags"]:
        if code in geo and kind_of_tag == _DOUBLE:
            numbers = np.frombuffer(data, dtype)
            factors, firsts = (np.resize(row, len(numbers)) for row in geo[code])
            data = ((numbers + firsts) * factors - firsts).astype(dtype).tobytes()
        tags.append((code, kind_of_tag, count, data, once))
    return replace(metadata, **fields | {"tags": tuple(tags)}), dropped
