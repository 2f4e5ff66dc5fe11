"""Atomic LMDBs and folders, and the rules for their keys."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.preparation import writers
from dp_basicsr.data.preparation.records import Record, check_keys, make_record
from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter
from dp_basicsr.errors import UserError
from dp_basicsr.utils.staging import StagedFolder

import lmdb
import numpy as np
import pytest


def record(key: str, size: int = 1000) -> Record:
    return Record(key, key.encode() * (size // len(key)), (10, 20, 3), 1)


def stored(path: Path) -> dict[str, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {key.decode(): bytes(value) for key, value in transaction.cursor()}


def test_lmdb_holds_the_records_and_basicsrs_meta_info(tmp_path: Path) -> None:
    writer = LmdbWriter(tmp_path / "a.lmdb")
    writer.write([record("0001_s001"), record("0001_s002")])
    writer.write([make_record("png", "gray", np.zeros((4, 6), np.uint8), 3)])
    writer.close()
    written = writer.commit()
    assert (written.path, written.images) == (tmp_path / "a.lmdb", 3)
    assert set(stored(tmp_path / "a.lmdb")) == {"0001_s001", "0001_s002", "gray"}
    assert stored(tmp_path / "a.lmdb")["0001_s002"] == record("0001_s002").data
    assert (tmp_path / "a.lmdb" / "meta_info.txt").read_text() == (
        "0001_s001.png (10,20,3) 1\n0001_s002.png (10,20,3) 1\ngray.png (4,6,1) 3\n"
    )


def test_the_map_grows_automatically(tmp_path: Path) -> None:
    """Also by more than one doubling in a single call, and without losing earlier records."""
    writer = LmdbWriter(tmp_path / "a.lmdb", map_size=1 << 16)
    writer.write([record("first", 20_000)])
    writer.write([record(f"k{index}", 100_000) for index in range(20)])
    writer.write([record(f"l{index}", 100_000) for index in range(20)])
    writer.close()
    assert writer.commit().images == 41
    found = stored(tmp_path / "a.lmdb")
    assert len(found) == 41
    assert all(found[f"l{index}"] == record(f"l{index}", 100_000).data for index in range(20))


@pytest.mark.parametrize("make", [LmdbWriter, FolderWriter])
def test_output_is_invisible_before_commit_and_gone_after_discard(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    writer = make(tmp_path / "a.lmdb")
    writer.write([record("x")])
    assert not (tmp_path / "a.lmdb").exists()
    writer.close()
    assert not (tmp_path / "a.lmdb").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [LmdbWriter, FolderWriter])
def test_a_duplicate_key_is_refused_and_nothing_is_left(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    writer = make(tmp_path / "a.lmdb")
    writer.write([record("same")])
    with pytest.raises(UserError, match="same"):
        writer.write([record("same")])
    assert list(tmp_path.iterdir()) == []


def test_an_lmdb_s_name_must_end_with_lmdb(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder that ends with \.lmdb"):
        LmdbWriter(tmp_path / "a")


def test_existing_output_is_refused_and_overwritten_only_at_the_end(tmp_path: Path) -> None:
    first = LmdbWriter(tmp_path / "a.lmdb")
    first.write([record("old")])
    first.close()
    first.commit()
    with pytest.raises(UserError, match=r"already exists: .*a\.lmdb.*--overwrite"):
        LmdbWriter(tmp_path / "a.lmdb")
    second = LmdbWriter(tmp_path / "a.lmdb", overwrite=True)
    second.write([record("new")])
    second.close()
    assert set(stored(tmp_path / "a.lmdb")) == {"old"}
    second.commit()
    assert set(stored(tmp_path / "a.lmdb")) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.lmdb"]


def test_two_writers_of_one_output_do_not_mix(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "a") as first:
        with pytest.raises(UserError, match="another process is writing"):
            StagedFolder(tmp_path / "a")
        (first.path / "file").touch()
        first.commit()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]


def test_output_of_a_killed_process_is_reused(tmp_path: Path) -> None:
    left = tmp_path / "a.partial"
    (left / "folder").mkdir(parents=True)
    (left / "file").touch()
    with StagedFolder(tmp_path / "a") as staged:
        assert list(staged.path.iterdir()) == []
        staged.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with StagedFolder(tmp_path / "a" / "b") as staged:
            (staged.path / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_parent_that_is_a_file_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot create the folder"):
        StagedFolder(tmp_path / "file" / "a")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit files to 300 kB, which looks like a full disk to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("make", [LmdbWriter, FolderWriter])
@pytest.mark.parametrize(
    "large", [record("large", 1_000_000), make_record("raw", "raw", np.zeros((480, 480, 3), np.uint8))]
)
def test_a_full_disk_is_named_and_nothing_is_left(
    tmp_path: Path, make: Callable[[Path], Any], large: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(folder: Path) -> str:
        return f"{len(list(folder.iterdir()))} entries"

    # Asked while the disk is still full of what is discarded then.
    monkeypatch.setattr(writers, "free_space", entries)
    writer = make(tmp_path / "a.lmdb")
    writer.write([record("small")])
    with pytest.raises(UserError, match=r"cannot write .*a\.lmdb.*\([1-9] entries\)"):
        writer.write([large])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.b.png", "a.c.png"], r"a\.b\.png"),
        (["a.png", "a.jpg"], r"a\.png and a\.jpg would both have the LMDB key 'a'"),
        (["a.png", "a.x.png"], r"a\.png and a\.x\.png would both"),
        (["a.b.png"], "looked up as 'a'"),
        ([".png.png"], "looked up as ''"),
        (["ü.png"], "printable ASCII"),
        (["a\nb.png"], "printable ASCII"),
        (["x" * 506 + ".png"], "makes a key of 512 bytes, LMDB allows 511"),
    ],
)
def test_names_that_are_not_valid_keys_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_keys(names, suffix="_s9999")


def test_both_of_two_colliding_names_are_named() -> None:
    with pytest.raises(UserError, match=r"a\.b\.png and a\.c\.png would both have the LMDB key 'a'"):
        check_keys(["a.b.png", "a.c.png"])


def test_lmdb_accepts_the_longest_key(tmp_path: Path) -> None:
    check_keys(["x" * 511 + ".png", "a b-c_d.png"])
    writer = LmdbWriter(tmp_path / "a.lmdb")
    writer.write([record("x" * 511)])
    writer.discard()
