"""Atomic LMDBs and folders, and the rules for their keys."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter, Record, check_keys, make_record
from dp_basicsr.errors import UserError
from dp_basicsr.utils.staging import StagedFolder

import lmdb
import numpy as np
import pytest

from tests.support.stream import write_lmdb

Kind = type[FolderWriter]
both_kinds = pytest.mark.parametrize("kind", [LmdbWriter, FolderWriter])


def record(key: str, size: int = 1000) -> Record:
    return Record(key, key.encode() * (size // len(key)), (10, 20, 3), 1)


def stored(path: Path) -> dict[str, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {key.decode(): bytes(value) for key, value in transaction.cursor()}


def test_the_map_grows_automatically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by more than one doubling in a single call, and without losing earlier records."""
    calls = [[record("first", 20_000)], *([record(f"{name}{index}", 100_000) for index in range(20)] for name in "kl")]
    monkeypatch.setattr(LmdbWriter, "map_size", 1 << 16)
    with LmdbWriter(tmp_path / "a.lmdb") as writer:
        for records in calls:
            writer.write(records)
        writer.close()
        writer.commit()
    assert stored(tmp_path / "a.lmdb") == {entry.key: entry.data for call in calls for entry in call}


@both_kinds
def test_output_is_invisible_before_commit_and_gone_after_an_error(tmp_path: Path, kind: Kind) -> None:
    with kind(tmp_path / "a.lmdb") as writer:
        writer.write([record("same")])
        assert not (tmp_path / "a.lmdb").exists()
        with pytest.raises(UserError, match="same"):
            writer.write([record("same")])
    assert list(tmp_path.iterdir()) == []


@both_kinds
@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_the_umask_decides_who_may_read_and_write(tmp_path: Path, kind: Kind, umask: int) -> None:
    """seqmagick#26"""
    before = os.umask(umask)
    try:
        with kind(tmp_path / "a.lmdb") as writer:
            writer.write([record("key")])
            writer.close()
            writer.commit()
    finally:
        os.umask(before)
    for path in [tmp_path / "a.lmdb", *(tmp_path / "a.lmdb").iterdir()]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_an_lmdb_s_name_must_end_with_lmdb(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder that ends with \.lmdb"):
        LmdbWriter(tmp_path / "a")


@pytest.mark.parametrize("name", ["a.lmdb", "a" * 250 + ".lmdb"], ids=["short", "longest"])
def test_existing_output_is_refused_and_overwritten_only_at_the_end(tmp_path: Path, name: str) -> None:
    """worms#9: a legal name that a suffix for the temporary folder made too long."""
    path = tmp_path / name
    write_lmdb(path, record("old"))
    with pytest.raises(UserError, match=r"already exists: .*a\.lmdb.*--overwrite"):
        LmdbWriter(path)
    second = LmdbWriter(path, overwrite=True)
    second.write([record("new")])
    second.close()
    assert set(stored(path)) == {"old"}
    second.commit()
    assert set(stored(path)) == {"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_an_empty_folder_is_filled_unless_none_can_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by hand before, as many do; a volume of a container cannot be renamed."""
    path = tmp_path / "a.lmdb"
    path.mkdir()
    write_lmdb(path, record("new"))
    assert set(stored(path)) == {"new"}
    (tmp_path / "b.lmdb").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "b.lmdb")
    with pytest.raises(UserError, match="already exists"):
        LmdbWriter(tmp_path / "b.lmdb")
    assert not list((tmp_path / "b.lmdb").iterdir())


def test_two_writers_of_one_output_do_not_mix_and_a_killed_one_s_output_goes(tmp_path: Path) -> None:
    (tmp_path / "a.partial" / "folder").mkdir(parents=True)
    (tmp_path / "a.partial" / "file").touch()
    with StagedFolder(tmp_path / "a") as first:
        assert list(first.path.iterdir()) == []
        with pytest.raises(UserError, match="another process is writing"):
            StagedFolder(tmp_path / "a")
        (first.path / "file").touch()
    assert list(tmp_path.iterdir()) == [], "it was not committed"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_behind_a_link_is_replaced_again_and_again(tmp_path: Path, is_there: bool) -> None:
    """RawTherapee#6192"""
    if is_there:
        (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "a").symlink_to("disk/real")
    for name in "xyz":
        with FolderWriter(tmp_path / "a", overwrite=True) as writer:
            (writer.path / f"{name}.png").touch()
            writer.commit()
        assert (tmp_path / "a").is_symlink()
        assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "disk").rglob("*")] == [
            "disk/real", f"disk/real/{name}.png"
        ]  # fmt: skip


def test_a_parent_that_is_a_file_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot create the folder"):
        StagedFolder(tmp_path / "file" / "a")


@pytest.mark.parametrize("final", [".", "..", "a/..", "/"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_one_works_in_is_not_exchanged(final: str, overwrite: bool) -> None:
    with pytest.raises(UserError, match="cannot be exchanged for another folder: choose one below it"):
        StagedFolder(Path(final), overwrite=overwrite)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit files to 300 kB, which looks like a full disk to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
@both_kinds
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, kind: Kind) -> None:
    with kind(tmp_path / "a.lmdb") as writer:
        writer.write([record("small")])
        with pytest.raises(UserError, match=r"cannot write .*a\.lmdb.* free on its disk"):
            writer.write([make_record("raw", "large", np.zeros((480, 480, 3), np.uint8))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.b.png", "a.c.png"], r"a\.b\.png and a\.c\.png would both have the LMDB key 'a'"),
        (["a.png", "a.jpg"], r"a\.png and a\.jpg would both"),
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


def test_lmdb_accepts_the_longest_key(tmp_path: Path) -> None:
    check_keys(["x" * 511 + ".png", "a b-c_d.png"])
    assert set(stored(write_lmdb(tmp_path / "a.lmdb", record("x" * 511)))) == {"x" * 511}
