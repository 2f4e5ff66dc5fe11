"""Randomly damaged files give pixels or one of our errors, never another error or a crash.

``make fuzz`` tries more of them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info, refuse_damaged
from dp_basicsr.data.preparation.writers import RecordForm, make_record
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.strict import decode_image

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.support.fuzz import draws
from tests.support.images import damage
from tests.support.stream import write_lmdb

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


KINDS = [(suffix, np.uint8) for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp", ".gif")]
DEEP = [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)]


def share_refused(read: Callable[[random.Random], object], count: int = 100) -> float:
    """Read generated damage; return the share that one of our errors refused."""
    outcomes = []
    for rng in draws(count):
        try:
            read(rng)
            outcomes.append(False)
        except UserError:
            outcomes.append(True)
    return sum(outcomes) / len(outcomes)


@pytest.mark.parametrize(("suffix", "depth"), [*KINDS, *DEEP])
def test_an_image_decodes_or_is_refused(suffix: str, depth: type) -> None:
    content = cv2.imencode(suffix, IMAGE.astype(depth))[1].tobytes()

    def read(rng: random.Random) -> None:
        assert decode_image(damage(content, rng, 64)).dtype == np.uint8

    assert share_refused(read) > 0.1  # the damage reaches it


@pytest.mark.parametrize("suffix", ["JPEG", "WEBP", "TIFF"])
def test_an_image_with_damaged_exif_decodes_or_is_refused(suffix: str) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(buffer, suffix, exif=exif)

    def read(rng: random.Random) -> None:
        assert decode_image(damage(buffer.getvalue(), rng, 96)).dtype == np.uint8

    assert share_refused(read) < 1


@pytest.mark.parametrize(("form", "share"), [("png", 0.5), ("raw", 0.2)])  # damaged pixels of raw records are pixels
def test_an_lmdb_is_read_or_refused(tmp_path: Path, form: RecordForm, share: float) -> None:
    path = write_lmdb(tmp_path / "a.lmdb", *[make_record(form, f"k{number}", IMAGE, 1) for number in range(20)])
    content = (path / "data.mdb").read_bytes()

    def read(rng: random.Random) -> None:
        (path / "data.mdb").write_bytes(damage(content, rng, 64))
        refuse_damaged(str(path))  # as training and test.py do: reading it could raise a bus error
        refused = 0
        for source in find_sources(path):
            try:
                source.read()
            except BadImageError:
                refused += 1
        lmdb_reader(path).stored_keys()
        if refused:
            raise BadImageError(path, "")

    assert share_refused(read, 15) > share


def test_a_meta_info_is_read_or_refused(tmp_path: Path) -> None:
    content = b"0001_s001.png (480,480,3) 1\n" * 5

    def read(rng: random.Random) -> None:
        (tmp_path / "meta_info.txt").write_bytes(damage(content, rng, 64))
        assert all(len(shape) == 3 for shape in read_meta_info(tmp_path).shapes.values())

    assert 1 / 12 < share_refused(read) < 1
