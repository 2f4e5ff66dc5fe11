"""Randomly damaged files give pixels or one of our errors, never another error or a crash.

DP_BASICSR_FUZZ=5000 tries so many of each; without it 100.
"""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

from dp_basicsr.data.images import BadImageError, decode_image
from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info
from dp_basicsr.data.lmdb_walk import refuse_damaged
from dp_basicsr.data.preparation.lmdb_writer import LmdbWriter
from dp_basicsr.data.preparation.records import RecordForm, make_record
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError

import cv2
import numpy as np
import pytest
from PIL import Image

CASES = int(os.environ.get("DP_BASICSR_FUZZ", "100"))
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def damage(content: bytes, rng: random.Random, head: int) -> bytes:
    """Overwrite some bytes, half of them within ``head`` bytes of the start of a page of 4096; truncate one in six."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 10))):
        page = 4096 * rng.randrange(len(data) // 4096 + 1)
        place = page + rng.randrange(head) if rng.random() < 0.5 else rng.randrange(len(data))
        data[min(place, len(data) - 1)] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 1 / 6 else data)


KINDS = [(suffix, np.uint8) for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp", ".gif")]
DEEP = [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)]


@pytest.mark.parametrize(("suffix", "depth"), [*KINDS, *DEEP])
def test_an_image_decodes_or_is_refused(suffix: str, depth: type) -> None:
    rng, content = random.Random(suffix), cv2.imencode(suffix, IMAGE.astype(depth))[1].tobytes()
    refused = 0
    for _ in range(CASES):
        try:
            assert decode_image(damage(content, rng, 64)).dtype == np.uint8
        except BadImageError:
            refused += 1
    assert refused > CASES // 10  # the damage reaches it


@pytest.mark.parametrize("suffix", ["JPEG", "WEBP", "TIFF"])
def test_an_image_with_damaged_exif_decodes_or_is_refused(suffix: str) -> None:
    exif, buffer, rng, read = Image.Exif(), io.BytesIO(), random.Random(suffix), 0
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(buffer, suffix, exif=exif)
    for _ in range(CASES):
        try:
            image = decode_image(damage(buffer.getvalue(), rng, 96))
        except BadImageError:
            continue
        assert image.dtype == np.uint8
        read += 1
    assert read


@pytest.mark.parametrize(("form", "share"), [("png", 4), ("raw", 12)])  # damaged pixels of raw records are pixels
def test_an_lmdb_is_read_or_refused(tmp_path: Path, form: RecordForm, share: int) -> None:
    path = tmp_path / "a.lmdb"
    writer = LmdbWriter(path)
    writer.write([make_record(form, f"k{number}", IMAGE, 1) for number in range(20)])
    writer.close()
    writer.commit()
    rng, content, refused = random.Random(form), (path / "data.mdb").read_bytes(), 0
    for _ in range(CASES * 2 // 5):
        (path / "data.mdb").write_bytes(damage(content, rng, 64))
        try:
            refuse_damaged(str(path))  # as training and test.py do: reading it could raise a bus error
        except UserError:
            refused += 1
            continue
        for source in find_sources(path):
            try:
                source.read()
            except BadImageError:
                refused += 1
        try:
            lmdb_reader(path).stored_keys()
        except UserError:
            refused += 1
    assert refused > CASES // share


def test_a_meta_info_is_read_or_refused(tmp_path: Path) -> None:
    rng, content = random.Random(0), b"0001_s001.png (480,480,3) 1\n" * 5
    refused = 0
    for _ in range(3 * CASES):
        (tmp_path / "meta_info.txt").write_bytes(damage(content, rng, 64))
        try:
            assert all(len(shape) == 3 for shape in read_meta_info(tmp_path).shapes.values())
        except UserError:
            refused += 1
    assert CASES // 4 < refused < 3 * CASES
