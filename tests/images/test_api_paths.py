"""What a program passes to the readers and writers of pictures: texts for paths, other suffixes, rare places of XMP."""

from __future__ import annotations

import io
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.images.metadata import Picture
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import write_picture

import numpy as np
import pytest
from PIL import Image


def test_a_path_may_be_text_and_another_suffix_is_refused(tmp_path: Path) -> None:
    picture = Picture(np.full((4, 5, 3), 7, np.uint8))
    write_picture(picture, str(tmp_path / "a.png"))
    assert np.array_equal(read_picture(str(tmp_path / "a.png")).colour, picture.colour)
    with pytest.raises(UserError, match=r"ends in .*\.png.*got \.xyz"):
        write_picture(picture, tmp_path / "a.xyz")


def test_xmp_of_a_gif_is_kept(tmp_path: Path) -> None:
    """Pillow leaves it; the packet stands before a trailer that lets GIF's blocks be skipped (XMP, part 3)."""
    buffer, xmp = io.BytesIO(), b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>text</a></x:xmpmeta>'
    Image.new("P", (4, 4)).save(buffer, "GIF")
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    block = b"\x21\xff\x0bXMP DataXMP" + xmp + trailer
    data = buffer.getvalue()
    image = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    (tmp_path / "a.gif").write_bytes(data[:image] + block + data[image:])
    assert read_picture(tmp_path / "a.gif").metadata.xmp == xmp
