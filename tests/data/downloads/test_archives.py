"""Unpacking untrusted archives."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from dp_basicsr.data.downloads import archives
from dp_basicsr.data.downloads.archives import unpack_images
from dp_basicsr.errors import UserError

import pytest

Entries = dict[str, bytes]
GOOD = {
    "Set/": b"",
    "Set/a.png": b"aaa",
    "Set/b.PNG": b"bbb",
    "Set/readme.txt": b"",
    "Set/deeper/c.png": b"",
    "d.png": b"",
}


def make_zip(path: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, entries: Entries) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = [make_zip, make_tar]
Maker = Callable[[Path, Entries], Path]


def only(tmp_path: Path, name: str) -> None:
    """Only the archive is left, inside and next to the folder."""
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """A folder so deep that a path with ``..`` stays inside the test's folder."""
    path = tmp_path / "deep" / "deeper"
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("make", MAKERS)
def test_the_images_of_one_folder_and_nothing_else(inner: Path, make: Maker) -> None:
    target = unpack_images(make(inner / "x", GOOD), "Set", inner / "out" / "GT", 2)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a.png": b"aaa", "b.PNG": b"bbb"}
    assert [path.name for path in (inner / "out").iterdir()] == ["GT"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name", ["../evil.png", "Set/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "\\evil.png"]
)
def test_an_archive_with_an_entry_outside_its_folder_is_refused(inner: Path, make: Maker, name: str) -> None:
    archive = make(inner / "x", {**GOOD, name: b"evil"})
    with pytest.raises(UserError, match="would be written outside the folder"):
        unpack_images(archive, "Set", inner / "out", 2)
    only(inner, "x")
    assert not list(inner.parents[1].rglob("*evil*"))


def test_links_and_devices_in_a_tar_are_refused(inner: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(inner / "x", "w") as archive:
            info = tarfile.TarInfo("Set/a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(UserError, match="is neither file nor folder"):
            unpack_images(inner / "x", "Set", inner / "out", 1)
        only(inner, "x")


def test_a_link_in_a_zip_is_refused(inner: Path) -> None:
    info = zipfile.ZipInfo("Set/a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(inner / "x", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is neither file nor folder"):
        unpack_images(inner / "x", "Set", inner / "out", 1)
    only(inner, "x")


@pytest.mark.parametrize("make", MAKERS)
def test_an_archive_that_unpacks_to_too_much_is_refused(
    inner: Path, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_LARGEST", 1000)
    archive = make(inner / "x", {"Set/a.png": bytes(600), "Set/b.png": bytes(600)})
    with pytest.raises(UserError, match="unpacks to more than 1,000 bytes"):
        unpack_images(archive, "Set", inner / "out", 2)
    only(inner, "x")


@pytest.mark.parametrize("make", MAKERS)
def test_a_wrong_number_of_images_is_refused(inner: Path, make: Maker) -> None:
    with pytest.raises(UserError, match="has 2 images in its folder Set, expected 3"):
        unpack_images(make(inner / "x", GOOD), "Set", inner / "out", 3)
    only(inner, "x")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_damaged_archive_is_refused(inner: Path, make: Maker, share: float) -> None:
    archive = make(inner / "x", {f"Set/{index}.png": index.to_bytes(2, "big") * 5000 for index in range(50)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(UserError, match="is damaged or not an archive"):
        unpack_images(archive, "Set", inner / "out", 50)
    only(inner, "x")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", MAKERS)
def test_one_name_twice_is_refused(inner: Path, make: Maker) -> None:
    archive = make(inner / "x", {"Set/a.png": b"1", "./Set/a.png": b"2"})
    with pytest.raises(UserError):
        unpack_images(archive, "Set", inner / "out", 2)
    only(inner, "x")


def test_an_existing_target_is_not_changed(inner: Path) -> None:
    (inner / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        unpack_images(make_zip(inner / "x", GOOD), "Set", inner / "out", 2)
