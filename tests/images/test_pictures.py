"""Pictures in and out: Pillow, OpenCV and tifffile write the inputs and read the results."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from dp_basicsr.images.files import FORMATS, BadImageError
from dp_basicsr.images.metadata import Metadata, Picture
from dp_basicsr.images.png import join
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import encode_picture, write_picture

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, features

from tests.support.fuzz import draws
from tests.support.images import damage

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
SIZE = (9, 6)
ALPHA16 = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_8_bit_kind_is_read_as_pillow_shows_it(mode: str, suffix: str) -> None:
    source = Image.fromarray(np.dstack([RGB, ALPHA]))
    source = source.convert("RGB").convert(mode) if mode == "P" else source.convert(mode)
    source.save(f"in{suffix}", icc_profile=ICC)
    picture = read_picture(Path(f"in{suffix}"))
    shown = np.asarray(source.convert("RGBA"))
    assert np.array_equal(picture.colour, shown[:, :, :3])
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))
    assert picture.alpha is None or np.array_equal(picture.alpha, shown[:, :, 3])
    assert picture.gray == (mode in ("1", "L", "LA"))
    assert picture.metadata.icc == ICC


def test_a_bare_number_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's KeyError of a damaged file is only "105" as text."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(105)

    Path("in.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadImageError, match="damaged: KeyError 105"):
        read_picture(Path("in.png"))


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparency_of_a_palette(suffix: str) -> None:
    source = Image.fromarray(RGB).quantize(8)
    source.save(f"in{suffix}", transparency=3)
    picture = read_picture(Path(f"in{suffix}"))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, np.asarray(source) == 3)
    assert not picture.gray


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read_as_pillow_shows_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([RGB, ALPHA])).save("in.avif", exif=exif, icc_profile=ICC)
    picture = read_picture(Path("in.avif"))
    assert picture.alpha is not None
    shown = np.asarray(ImageOps.exif_transpose(Image.open("in.avif")))
    assert np.array_equal(np.dstack([picture.colour, picture.alpha]), shown)
    assert shown.shape == (9, 6, 4)
    assert picture.metadata.icc == ICC


def test_transparent_colour_of_png() -> None:
    Image.fromarray(RGB).save("in.png", transparency=tuple(int(value) for value in RGB[2, 3]))
    alpha = read_picture(Path("in.png")).alpha
    assert alpha is not None
    assert np.array_equal(alpha == 0, (RGB[2, 3] == RGB).all(axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gray", [False, True])
def test_16_bits_stay_16_bits(suffix: str, alpha: bool, gray: bool) -> None:
    colour = RGB16[:, :, :1].repeat(3, axis=2) if gray else RGB16
    icc = None if gray else ICC  # an RGB profile
    picture = Picture(colour, ALPHA16 if alpha else None, gray, Metadata(SIZE, icc))
    path = Path(f"out{suffix}")
    write_picture(picture, path)
    again = read_picture(path)
    assert np.array_equal(again.colour, colour)
    assert (again.alpha is None) == (not alpha)
    assert again.alpha is None or np.array_equal(again.alpha, ALPHA16)
    assert again.gray == (gray and not alpha)
    assert again.metadata.icc == icc
    seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)  # the others' view of it
    assert seen is not None
    assert seen.dtype == np.uint16
    with Image.open(path) as image:
        image.load()
        assert image.info.get("icc_profile") == icc


def test_16_bit_png_of_gray_with_alpha_is_known_as_gray() -> None:
    gray = RGB16[:, :, 0]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = np.dstack([gray, ALPHA16]).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 9, 6, 16, 4, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    Path("la.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    picture = read_picture(Path("la.png"))
    assert picture.gray
    assert np.array_equal(picture.colour[:, :, 1], gray)
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, ALPHA16)


def test_16_bit_tiff_of_tifffile_and_lzw_of_opencv() -> None:
    tifffile.imwrite("a.tif", RGB16, photometric="rgb")
    assert cv2.imwrite("b.tif", RGB16[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    for name in ("a.tif", "b.tif"):
        assert np.array_equal(read_picture(Path(name)).colour, RGB16)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["8.jpg", "8.png", "16.png", "8.webp", "8.tif"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera \xa9"
    if kind == "16.png":
        deep = cv2.imencode(".png", RGB16[:, :, ::-1])[1].tobytes()
        Path(kind).write_bytes(join(deep, [(b"eXIf", exif.tobytes()[6:])]))
        expected = np.asarray(ImageOps.exif_transpose(_with_orientation((RGB16 >> 8).astype(np.uint8), orientation)))
        found = (read_picture(Path(kind)).colour >> 8).astype(np.uint8)
    else:
        Image.fromarray(RGB).save(kind, exif=exif)
        with Image.open(kind) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        found = read_picture(Path(kind)).colour
    assert np.array_equal(found, expected)
    write_picture(read_picture(Path(kind)), Path(f"out{kind}"))
    with Image.open(f"out{kind}") as image:
        again = image.getexif()
        assert again[0x010F].startswith("a camera ")
        assert 0x0112 not in again


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_upright(orientation: int) -> None:
    tags = [(0x0112, "H", 1, orientation, True)]
    tifffile.imwrite("in.tif", RGB16, photometric="rgb", extratags=tags, metadata=None)
    expected = ImageOps.exif_transpose(_with_orientation((RGB16 >> 8).astype(np.uint8), orientation))
    assert np.array_equal(read_picture(Path("in.tif")).colour >> 8, np.asarray(expected))


def test_exif_that_pillow_cannot_write_again_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    odd = exif.tobytes().replace(b"\x01\x1a\0\x05", b"\x01\x1a\0\x01")  # the resolution as a byte
    Image.fromarray(RGB).save("in.jpg", exif=odd)
    warned: list[str] = []
    picture = read_picture(Path("in.jpg"))
    assert picture.colour.shape == (9, 6, 3), "its orientation is applied"
    assert b"\x01\x1a\0\x01" in encode_picture(picture, ".jpg", warn=warned.append)
    assert warned == []


def test_exif_that_ends_early_is_dropped_with_a_warning() -> None:
    Image.fromarray(RGB).save("in.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02")
    warned: list[str] = []
    with Image.open(io.BytesIO(encode_picture(read_picture(Path("in.png")), ".jpg", warn=warned.append))) as image:
        assert "exif" not in image.info
    assert warned == ["dropped: damaged EXIF"]


def long_exif(length: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * length
    return exif.tobytes()


@pytest.mark.parametrize("source", ["in.png", "in.webp"])
def test_exif_too_long_for_jpeg_is_dropped_with_a_warning(source: str) -> None:
    Image.fromarray(RGB).save(source, exif=long_exif(70_000))
    warned: list[str] = []
    picture = read_picture(Path(source))
    for suffix in (".jpg", ".png", ".webp"):
        write_picture(picture, Path(f"out{suffix}"), warn=warned.append)
        assert bool(read_picture(Path(f"out{suffix}")).metadata.exif) == (suffix != ".jpg")
    (message,) = warned
    assert re.fullmatch(r"dropped: EXIF of 70,0\d\d bytes \(JPEG holds 64 KB\)", message)


def test_jpeg_keeps_the_longest_exif_that_it_can() -> None:
    overhead = len(long_exif(1000)) - 1000
    for length in (65_533 - overhead, 65_534 - overhead):
        warned: list[str] = []
        picture = Picture(RGB, metadata=Metadata(SIZE, exif=long_exif(length)[6:]))
        Path("out.jpg").write_bytes(encode_picture(picture, ".jpg", warn=warned.append))
        kept = bool(read_picture(Path("out.jpg")).metadata.exif)
        assert kept != bool(warned)
        assert kept == (length == 65_533 - overhead)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_exif_is_kept_or_dropped(kind: str) -> None:
    """Damaged at random, an image is read and written in every format, or refused by name; nothing else."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F], exif[0x0132] = 6, 72.0, "a camera", "2022:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    content, tried, dropped = exif.tobytes(), 0, 0
    for rng in draws(100):
        tried += 1
        Image.fromarray(RGB).save(buffer := io.BytesIO(), kind, exif=damage(content, rng, len(content)))
        Path("in").write_bytes(buffer.getvalue())
        warned: list[str] = []
        picture = read_picture(Path("in"))
        for suffix in (".jpg", ".png", ".webp"):
            encode_picture(picture, suffix, warn=warned.append)
        dropped += bool(warned)
    assert 0 < dropped < tried


def _with_orientation(array: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("suffix", sorted(FORMATS))
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_format_keeps_what_it_can_and_refuses_the_rest(suffix: str, gray: bool, alpha: bool, bits: int) -> None:
    smooth = np.linspace(0, 255, 32).astype(np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2)
    colour = smooth if bits == 8 else smooth.astype(np.uint16) * 257
    icc = None if gray else ICC
    picture = Picture(colour, colour[:, ::-1, 0] if alpha else None, gray, Metadata((32, 20), icc))
    path = Path(f"out{suffix}")
    if alpha and FORMATS[suffix] in ("JPEG", "BMP"):
        with pytest.raises(BadImageError, match="has transparency, which .* cannot keep: give --ext png or --alpha"):
            write_picture(picture, path)
        assert list(Path().iterdir()) == []
        return
    write_picture(picture, path, quality=100)
    again = read_picture(path)
    kept_16 = bits == 16 and FORMATS[suffix] in ("PNG", "TIFF")
    assert again.colour.dtype == (np.uint16 if kept_16 else np.uint8)
    wanted = colour if kept_16 else smooth
    assert np.abs(again.colour.astype(int) - wanted.astype(int)).max() <= (3 if FORMATS[suffix] == "JPEG" else 0)
    assert (again.alpha is not None) == alpha
    assert FORMATS[suffix] == "BMP" or again.metadata.icc == icc


def test_cmyk_comes_out_as_rgb() -> None:
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save("in.jpg")
    picture = read_picture(Path("in.jpg"))
    assert np.abs(picture.colour[0, 0].astype(int) - [255, 0, 0]).max() <= 3
    assert picture.metadata.icc is None


def _frames(path: str) -> None:
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])


def _cut(path: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(
        file, "PNG" if path == "cut.png" else "JPEG"
    )
    Path(path).write_bytes(file.getvalue()[: len(file.getvalue()) // 2])


@pytest.mark.parametrize(
    ("path", "write", "message"),
    [
        ("moving.gif", _frames, "has 2 frames or pages"),
        ("moving.webp", _frames, "has 2 frames or pages"),
        ("moving.png", _frames, "has 2 frames or pages"),
        ("pages.tif", _frames, "has 2 frames or pages"),
        ("cut.png", _cut, "cannot be read .*truncated"),
        ("cut.jpg", _cut, "cannot be read .*truncated"),
        ("empty.png", lambda path: Path(path).touch(), "is empty"),
        (
            "text.png",
            lambda path: Path(path).write_text("hello"),
            "is not an image of a supported type .*PNG, JPEG, WEBP, TIFF",
        ),
        (
            "float.tif",
            lambda path: tifffile.imwrite(path, RGB16[:, :, 0].astype(np.float32)),
            "32 bits per channel or floats",
        ),
        ("none.png", lambda path: None, "No such file"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(path: str, write: Any, message: str) -> None:
    write(path)
    with pytest.raises(BadImageError, match=message):
        read_picture(Path(path))


def test_a_limit_of_pixels_is_held_before_decoding() -> None:
    Image.new("1", (3000, 3000)).save("large.png")
    with pytest.raises(BadImageError, match="is 3000 x 3000, more than 4 megapixels"):
        read_picture(Path("large.png"), max_pixels=4_000_000)


@pytest.mark.parametrize("limit", [89_478_485, None])  # as Pillow has it, and as inference.py sets it
def test_a_bomb_is_refused_before_decoding(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    Image.new("RGB", (4, 4)).save("bomb.png")
    data = bytearray(Path("bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # IHDR's size, and its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    Path("bomb.png").write_bytes(data)
    with pytest.raises(BadImageError, match=r"decompression bomb|is 60000 x 60000, more than 1073.74 megapixels"):
        read_picture(Path("bomb.png"))


def test_a_failed_write_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("out.png")
    path.write_bytes(b"the old one")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_picture(Picture(RGB), path)
    assert path.read_bytes() == b"the old one"
    assert list(Path().iterdir()) == [path]


def test_too_large_for_the_format() -> None:
    with pytest.raises(BadImageError, match="would become 16400 x 1, and WEBP ends at 16383 pixels: give --ext png"):
        encode_picture(Picture(np.zeros((1, 16400, 3), np.uint8)), ".webp")


@pytest.mark.parametrize(
    ("before", "after", "is_named"), [("lossless", 95, True), ("lossless", 100, False), ("lossy", 95, False)]
)
def test_a_lossless_webp_does_not_lose_in_silence(before: str, after: int, is_named: bool) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save("a.webp", lossless=before == "lossless")
    said: list[str] = []
    write_picture(read_picture(Path("a.webp")), Path("b.webp"), after, said.append)
    assert bool(said) == is_named
    assert said == ["dropped: lossless coding, which --quality 100 keeps"] * is_named
