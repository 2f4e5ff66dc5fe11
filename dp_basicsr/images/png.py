"""The chunks of a PNG file."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

Chunk = tuple[bytes, bytes]  # name, content
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
HEADER_END = 8 + 12 + 13  # signature; length, name and checksum of IHDR; its content
LONGEST = 1 << 26  # bytes of a profile or a text, unpacked: far above any, and below what would fill the memory
_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iDOT")  # and the chunks whose name begins with a capital
_DECODED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"CgBI", b"eXIf", *_PIXELS[:4])
# Chunks that hold for the result too: these, and by PNG's rule those whose fourth letter is small.
_COPIED = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi", b"tIME", b"pHYs")
_PROFILES = (b"raw profile type exif", b"raw profile type app1", b"raw profile type xmp")  # ImageMagick's, exiftool's
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_OF_PIXELS = re.compile(rb"exif:(.*Image(Width|Length)|Pixel|Subject(Area|Loc)|FocalPlane[XY]|thumbnail)")  # texts
USUAL_COLOURS = (b"\1\x0d", b"\2\2")  # primaries and transfer in cICP: of sRGB, and unspecified
_IN_PIXELS = (b"oFFs", b"sCAL", b"vpAg", b"caNv")  # except these, which count in pixels


def split(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Split a PNG file into the file of its pixels, and what it holds beside them.

    Decoders refuse a healthy picture for a large profile or text, so they get the pixels alone. The rest has, by
    Pillow's names, what other formats can hold too, ``chunks`` that only PNG can, and ``rest``: names of what is not
    read.
    """
    pixels, info = [SIGNATURE], dict[str, Any](exif=b"", chunks=[], rest=[])
    name, end = b"", len(SIGNATURE)
    for name, offset, end, is_wrong in _chunks(data):
        # The decoder also gets a chunk that the file breaks off in, and reports it.
        if ((name[:1].isupper() or name in _PIXELS) and not is_wrong) or end > len(data):
            pixels.append(data[offset:end])
        else:
            try:
                if zlib.crc32(data[offset + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                    raise ValueError("wrong checksum")
                _read_chunk(name, data[offset + 8 : end - 4], info)
            except (zlib.error, struct.error, ValueError, IndexError):
                info["rest"].append(f"damaged {name.decode('latin-1')}")
    if name != b"IEND" and end <= len(data):
        # A file that lacks nothing else is shown by viewers, and not by OpenCV.
        pixels.append(_END)
    elif end < len(data):
        info["rest"].append(f"{len(data) - end:,} bytes after the picture")
    return b"".join(pixels), info


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield the name, start and end of each chunk of a PNG file, and whether browsers and libpng ignore its content."""
    offset, name, kind = len(SIGNATURE), b"", data[25:26]
    lengths = {b"\0": range(2, 3), b"\2": range(6, 7)}.get(kind, range(0))  # of a transparent value
    while offset + 12 <= len(data) and name != b"IEND":
        (length,) = struct.unpack_from(">I", data, offset)
        name, end = data[offset + 4 : offset + 8], offset + 12 + length
        if name == b"PLTE" and kind == b"\3":
            lengths = range(1, length // 3 + 1)
        is_odd_exif = name == b"eXIf" and data[offset + 8 : offset + 12] not in (b"II*\0", b"MM\0*")
        yield name, offset, end, is_odd_exif or (name == b"tRNS" and length not in lengths)
        offset = end


def without_remarks(data: bytes) -> bytes:
    """Return a PNG file without the chunks that change no pixel, which libpng warns about, image by image, or refuses.

    Old programs write an sRGB profile that it calls incorrect. What is no PNG file is returned as it is.
    """
    before, parts = 8, [SIGNATURE]
    for name, offset, end, is_wrong in _chunks(data) if data.startswith(SIGNATURE) else ():
        # Of gray and colours a palette is a suggestion.
        if is_wrong or name not in _DECODED or (name == b"PLTE" and data[25:26] != b"\3"):
            parts.append(data[before:offset])
            before = end
    return b"".join([*parts, data[before:]]) if len(parts) > 1 else data


def _read_chunk(name: bytes, content: bytes, info: dict[str, Any]) -> None:
    keyword, _, value = content.partition(b"\0")
    if name == b"iCCP":
        info["icc_profile"] = _unpack(value[1:])
    elif name == b"eXIf":
        info["exif"] = content
    # Unit 1 is the metre; without one it is the shape of pixels, no density.
    elif name == b"pHYs" and content[8:] == b"\1":
        info["dpi"] = tuple(count * 0.0254 for count in struct.unpack(">II", content[:8]))  # from per metre
    elif name == b"iTXt" and keyword == b"XML:com.adobe.xmp":
        # Behind two flags stand the language and the translated keyword.
        text = value[2:].split(b"\0", 2)[2]
        info["xmp"] = _unpack(text) if value[0] else text
    elif name in (b"tEXt", b"zTXt") and keyword.lower() in _PROFILES:
        text = _unpack(value[1:]) if name == b"zTXt" else value
        # An empty line, the name and the length stand before the digits.
        profile = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode())
        # Apart, because browsers and OpenCV turn no picture by such EXIF.
        kind = "xmp" if profile.startswith(_XMP) or keyword.endswith(b"xmp") else "exif_of_text"
        info[kind] = info.get(kind) or profile.removeprefix(_XMP)
    elif name in (b"tEXt", b"zTXt", b"iTXt") and _OF_PIXELS.match(keyword):
        info["rest"].append(name_of((name, content)))
    elif name in _COPIED or (name[3:].islower() and name not in _IN_PIXELS):
        info["chunks"].append((name, content))
    else:
        info["rest"].append(name.decode("latin-1"))


def _unpack(content: bytes) -> bytes:
    unpacked = (stream := zlib.decompressobj()).decompress(content, LONGEST)
    if not stream.eof and not stream.unconsumed_tail:
        raise ValueError("cut off")
    return unpacked


def join(data: bytes, chunks: list[Chunk]) -> bytes:
    """Insert chunks into a PNG file, after its header."""
    inserted = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return data[:HEADER_END] + b"".join(inserted) + data[HEADER_END:]


def name_of(chunk: Chunk) -> str:
    """Name a chunk for people: a text by its keyword."""
    name, content = chunk
    is_text = name in (b"tEXt", b"zTXt", b"iTXt")
    return f"text {content.partition(bytes(1))[0].decode('latin-1')!r}" if is_text else name.decode("latin-1")
