"""Correct an EXIF block in its place, byte for byte.

Pillow would write it anew: it guesses types, loses letters beyond ASCII, and moves maker notes, which breaks them.
"""

from __future__ import annotations

import struct

_FIRST, _EXIF, _INTEROP = 0, 0x8769, 0xA005  # directories, by the tag that points to them
_ORIENTATION, _THUMBNAIL, _THUMBNAIL_BYTES = 0x0112, 0x0201, 0x0202
# Tags that hold width (0) or height (1), and tags of pixels per length along them.
_SIDES = {
    (_FIRST, 0x0100): 0, (_FIRST, 0x0101): 1, (_EXIF, 0xA002): 0, (_EXIF, 0xA003): 1,
    (_INTEROP, 0x1001): 0, (_INTEROP, 0x1002): 1,
}  # fmt: skip
_DENSITIES = {0xA20E: 0, 0xA20F: 1}  # FocalPlaneXResolution, FocalPlaneYResolution
_PLACES = {0x9214: "SubjectArea", 0xA214: "SubjectLocation"}  # in pixels
_LONG, _RATIONAL = 4, 5


def corrected(block: bytes, before: tuple[int, int], after: tuple[int, int]) -> tuple[bytes, list[str]]:
    """Make EXIF without its ``Exif`` mark speak of the upright result; return also the names of what was left out.

    ``before`` and ``after`` are width and height, upright. A damaged block raises struct.error or KeyError.
    """
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    data, dropped = bytearray(block), list[str]()
    directories = {_FIRST: struct.unpack_from(order + "I", data, 4)[0]}
    waiting = [_FIRST]
    # The list grows while it is walked.
    for directory in waiting:
        start = directories[directory]
        (count,) = struct.unpack_from(order + "H", data, start)
        end = start + 2 + 12 * count
        entries = []
        for offset in range(start + 2, end, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHII", data, offset)
            # Each directory once, because those of a damaged file may point to each other.
            if tag in (_EXIF, _INTEROP) and tag not in directories:
                directories[tag] = value
                waiting.append(tag)
            if tag == _ORIENTATION or tag in _PLACES:
                dropped += [_PLACES[tag]] if tag in _PLACES else []
                continue
            if (side := _SIDES.get((directory, tag))) is not None:
                # One number of four bytes stands in the entry itself, so nothing moves.
                struct.pack_into(order + "HII", data, offset + 2, _LONG, 1, after[side])
            elif tag in _DENSITIES and kind == _RATIONAL:
                numerator, denominator = struct.unpack_from(order + "II", data, value)
                side = _DENSITIES[tag]
                larger = round(numerator * after[side] / before[side])
                struct.pack_into(order + "II", data, value, min(larger, 2**32 - 1), denominator)
            elif tag in _DENSITIES:
                dropped.append(f"FocalPlane{'XY'[_DENSITIES[tag]]}Resolution")
                continue
            entries.append(data[offset : offset + 12])
        (following,) = struct.unpack_from(order + "I", data, end) if directory == _FIRST else (0,)
        if following:
            # Another directory follows the first one alone: that of the thumbnail, an old and small picture.
            dropped.append("EXIF's thumbnail")
            (count,) = struct.unpack_from(order + "H", data, following)
            rows = [struct.unpack_from(order + "HHII", data, following + 2 + 12 * number) for number in range(count)]
            values = {tag: value for tag, _, _, value in rows}
            offset, size = values.get(_THUMBNAIL, 0), values.get(_THUMBNAIL_BYTES, 0)
            if 0 < offset < offset + size <= len(data):
                data[offset : offset + size] = bytes(size)
        # In the same bytes, so that no offset changes; the zeros behind say that no directory follows.
        table = struct.pack(order + "H", len(entries)) + b"".join(entries)
        data[start : end + 4] = table.ljust(end + 4 - start, b"\0")
    return bytes(data), dropped
