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


every_maker = pytest.mark.parametrize("make", [make_zip, make_tar])
Maker = Callable[[Path, Entries], Path]


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """A folder so deep that a path with ``..`` stays inside the test's folder."""
    path = tmp_path / "deep" / "deeper"
    path.mkdir(parents=True)
    return path


def refused(archive: Path, images: int, message: str) -> None:
    """It is refused, and nothing is left beside it or outside its folder."""
    with pytest.raises(UserError, match=message):
        unpack_images(archive, "Set", archive.parent / "out", images)
    assert list(archive.parent.iterdir()) == [archive]
    assert not list(archive.parents[2].rglob("*evil*"))


@every_maker
def test_the_images_of_one_folder_and_nothing_else(inner: Path, make: Maker) -> None:
    target = unpack_images(make(inner / "x", GOOD), "Set", inner / "out" / "GT", 2)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a.png": b"aaa", "b.PNG": b"bbb"}
    assert [path.name for path in (inner / "out").iterdir()] == ["GT"]


@every_maker
@pytest.mark.parametrize(
    "name", ["../evil.png", "Set/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "\\evil.png"]
)
def test_an_archive_with_an_entry_outside_its_folder_is_refused(inner: Path, make: Maker, name: str) -> None:
    refused(make(inner / "x", {**GOOD, name: b"evil"}), 2, "would be written outside the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, None])
def test_links_and_devices_are_refused(inner: Path, kind: bytes | None) -> None:
    if kind is None:
        link = zipfile.ZipInfo("Set/a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(inner / "x", "w") as packed:
            packed.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(inner / "x", "w") as archive:
            info = tarfile.TarInfo("Set/a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    refused(inner / "x", 1, "is neither file nor folder")


@every_maker
def test_an_archive_that_unpacks_to_too_much_is_refused(
    inner: Path, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_LARGEST", 1000)
    archive = make(inner / "x", {"Set/a.png": bytes(600), "Set/b.png": bytes(600)})
    refused(archive, 2, "unpacks to more than 1,000 bytes")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@every_maker
def test_a_wrong_number_of_images_and_one_name_twice_are_refused(inner: Path, make: Maker) -> None:
    refused(make(inner / "x", GOOD), 3, "has 2 images in its folder Set, expected 3")
    refused(make(inner / "x", {"Set/a.png": b"1", "./Set/a.png": b"2"}), 2, "File exists")


@every_maker
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_damaged_archive_is_refused(inner: Path, make: Maker, share: float) -> None:
    archive = make(inner / "x", {f"Set/{index}.png": index.to_bytes(2, "big") * 5000 for index in range(50)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    refused(archive, 50, "is damaged or not an archive")
