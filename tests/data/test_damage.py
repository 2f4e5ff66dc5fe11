"""Randomly damaged files give pixels or one of our errors, never another error or a crash.

``make fuzz`` tries more of them.
"""

from __future__ import annotations

import io
from pathlib import Path

from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info, refuse_damaged
from dp_basicsr.data.preparation.writers import LmdbWriter, RecordForm, make_record
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

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


KINDS = [(suffix, np.uint8) for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp", ".gif")]
DEEP = [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)]


@pytest.mark.parametrize(("suffix", "depth"), [*KINDS, *DEEP])
def test_an_image_decodes_or_is_refused(suffix: str, depth: type) -> None:
    content = cv2.imencode(suffix, IMAGE.astype(depth))[1].tobytes()
    tried = refused = 0
    for rng in draws(100):
        tried += 1
        try:
            assert decode_image(damage(content, rng, 64)).dtype == np.uint8
        except BadImageError:
            refused += 1
    assert refused > tried // 10  # the damage reaches it


@pytest.mark.parametrize("suffix", ["JPEG", "WEBP", "TIFF"])
def test_an_image_with_damaged_exif_decodes_or_is_refused(suffix: str) -> None:
    exif, buffer, read = Image.Exif(), io.BytesIO(), 0
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(buffer, suffix, exif=exif)
    for rng in draws(100):
        try:
            image = decode_image(damage(buffer.getvalue(), rng, 96))
        except BadImageError:
            continue
        assert image.dtype == np.uint8
        read += 1
    assert read


@pytest.mark.parametrize(("form", "share"), [("png", 2), ("raw", 5)])  # damaged pixels of raw records are pixels
def test_an_lmdb_is_read_or_refused(tmp_path: Path, form: RecordForm, share: int) -> None:
    path = tmp_path / "a.lmdb"
    writer = LmdbWriter(path)
    writer.write([make_record(form, f"k{number}", IMAGE, 1) for number in range(20)])
    writer.close()
    writer.commit()
    content = (path / "data.mdb").read_bytes()
    tried = refused = 0
    for rng in draws(15):
        tried += 1
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
    assert refused > tried // share


def test_a_meta_info_is_read_or_refused(tmp_path: Path) -> None:
    content = b"0001_s001.png (480,480,3) 1\n" * 5
    tried = refused = 0
    for rng in draws(100):
        tried += 1
        (tmp_path / "meta_info.txt").write_bytes(damage(content, rng, 64))
        try:
            assert all(len(shape) == 3 for shape in read_meta_info(tmp_path).shapes.values())
        except UserError:
            refused += 1
    assert tried // 12 < refused < tried
