"""Images that are read, and images that are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.images import strict
from dp_basicsr.images.files import BadImageError, find_images, left_out
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.strict import encode_png, read_image

import cv2
import numpy as np
import pytest
import tifffile
from basicsr.utils import imfrombytes
from PIL import Image

from tests.support.images import smooth_noise

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_colour_survives_a_round_trip(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(COLOUR))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR)


def test_a_name_beyond_ascii_is_read(tmp_path: Path) -> None:
    (tmp_path / "büld.png").write_bytes(encode_png(COLOUR))
    np.testing.assert_array_equal(read_image(tmp_path / "büld.png"), COLOUR)


def test_gray_is_read_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(COLOUR[:, :, 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", gray=True), COLOUR[:, :, 0])
    with pytest.raises(BadImageError, match="is gray, expected three colour channels"):
        read_image(tmp_path / "a.png")


def test_an_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "opaque.png"), np.dstack([COLOUR, np.full_like(COLOUR[:, :, :1], 255)]))
    assert np.array_equal(read_image(tmp_path / "opaque.png"), COLOUR)


def test_sixteen_bits_and_alpha_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), COLOUR.astype(np.uint16) * 257)
    with pytest.raises(BadImageError, match="16 bits per channel, expected 8"):
        read_image(tmp_path / "deep.png")
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([COLOUR, COLOUR[:, :, :1]]))
    with pytest.raises(BadImageError, match="colour with alpha"):
        read_image(tmp_path / "alpha.png", gray=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    data = cv2.imencode(suffix, np.kron(COLOUR, np.ones((5, 5, 1), np.uint8)))[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImageError):
        read_image(path)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadImageError, match=r"is empty|not an image|truncated"):
        read_image(tmp_path / "a.png")


def claim(width: int, height: int) -> bytes:
    """A PNG file of a few hundred bytes whose header declares that many pixels, with a valid checksum."""
    data = bytearray(encode_png(COLOUR))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("limit", [89_478_485, None])  # Pillow's own, which some libraries switch off
@pytest.mark.parametrize("side", [12_000, 60_000])  # beyond our limit, and beyond Pillow's as well
def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, side: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    (tmp_path / "bomb.png").write_bytes(claim(side, side))
    with pytest.raises(BadImageError, match=r"more than 134.218 megapixels|cannot be read \(.*3600000000"):
        read_image(tmp_path / "bomb.png")


def test_an_image_just_below_the_limit_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(COLOUR))
    monkeypatch.setattr(strict, "MAX_PIXELS", 20 * 30)
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3)
    monkeypatch.setattr(strict, "MAX_PIXELS", 20 * 30 - 1)
    with pytest.raises(BadImageError, match="megapixels"):
        read_image(tmp_path / "a.png")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    data = bytearray(encode_png(COLOUR))
    data[len(data) // 2] ^= 0x10
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadImageError):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="cannot be read"):
        read_image(tmp_path / "none.png")


def test_find_images_takes_images_only_and_sorts(tmp_path: Path) -> None:
    for name in ["b.PNG", "a.jpg", "notes.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.png").touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(UserError, match="no image in"):
        find_images(tmp_path / "folder.png")
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "missing")


@pytest.mark.parametrize("suffix", [".jpg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".gif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("gray", [False, True])
def test_exif_orientation_is_applied_as_in_basicsr(tmp_path: Path, suffix: str, orientation: int, gray: bool) -> None:
    pixels = smooth_noise(24, 40, 1)
    path = tmp_path / f"a{suffix}"
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind = {".jpe": "JPEG", ".jfif": "JPEG", ".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    Image.fromarray(pixels[..., 0] if gray else pixels).save(buffer, kind, exif=exif)
    path.write_bytes(buffer.getvalue())
    theirs = np.round(imfrombytes(path.read_bytes(), float32=True) * 255).astype(np.uint8)
    ours = read_image(path, gray=True)
    assert np.array_equal(np.repeat(ours[..., None], 3, 2) if ours.ndim == 2 else ours, theirs)
    assert find_images(tmp_path) == [path]


def test_a_broken_exif_block_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth_noise(24, 40, 1)).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(path).shape == (24, 40, 3)


def test_ignored_files_are_counted(tmp_path: Path) -> None:
    assert left_out(tmp_path) == ""
    for name in ("a.png", ".hidden", "b.HEIC", "c.heic", "notes"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert left_out(tmp_path) == f"{tmp_path}: ignored 4 that are not images (2 .heic, 1 folder, 1 no suffix)"


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_several_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    images[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=images[1:])
    with pytest.raises(BadImageError, match="has 2 frames or pages"):
        read_image(tmp_path / f"a{suffix}")


def test_smaller_copies_of_a_tiff_do_not_count(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(COLOUR, photometric="rgb")
        file.write(COLOUR[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif"), COLOUR[:, :, ::-1])
    assert np.array_equal(read_picture(tmp_path / "a.tif").colour, COLOUR)
