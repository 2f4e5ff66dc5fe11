"""Pictures in and out: Pillow, OpenCV and tifffile write the inputs and read the results."""

from __future__ import annotations

import io
import itertools
import runpy
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr.images import opening
from dp_basicsr.images.files import FORMATS, BadImageError
from dp_basicsr.images.metadata import Metadata, Picture
from dp_basicsr.images.png import HEADER_END, join
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.strict import read_image
from dp_basicsr.images.write import encode_picture, refuse_unwritable, refuse_without_memory, write_picture

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, features

from tests.support.fuzz import draws
from tests.support.images import claim, damage, noise, write_noise

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB, RGB16 = noise(6, 9, 3), noise(6, 9, 3, dtype=np.uint16)


def test_a_bare_number_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's KeyError of a damaged file is only "105" as text."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(105)

    Path("in.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadImageError, match="damaged: KeyError 105"):
        read_picture(Path("in.png"))


def test_16_bit_lzw_of_opencv() -> None:
    assert cv2.imwrite("a.tif", RGB16[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert np.array_equal(read_picture(Path("a.tif")).colour, RGB16)


@pytest.mark.parametrize("kind", ["8.jpg", "8.png", "16.png", "8.webp", "8.tif"])
def test_exif_orientation_is_applied_once(kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "a camera \xa9"
        deep = RGB16 if kind == "16.png" else RGB16 >> 8
        Image.fromarray((deep >> 8 if kind == "16.png" else deep).astype(np.uint8)).save(kind, exif=exif)
        with Image.open(kind) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        if kind == "16.png":
            png = cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()
            Path(kind).write_bytes(join(png, [(b"eXIf", exif.tobytes()[6:])]))
        picture = read_picture(Path(kind))
        assert np.array_equal(picture.colour >> 8 if kind == "16.png" else picture.colour, expected)
        write_picture(picture, Path(f"out{kind}"))
        with Image.open(f"out{kind}") as image:
            again = image.getexif()
            assert again[0x010F].startswith("a camera ")
            assert 0x0112 not in again


@pytest.mark.parametrize("type_", [1, 3, 4, 8, 9])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_of_another_type_is_read_as_others_read_it(kind: str, order: Any, type_: int) -> None:
    """Pillow ignores a byte, as browsers do; in a TIFF libtiff applies it, and upscaling refused the file."""
    if kind == "TIFF":
        tags = [(0x0112, type_, 1, 6, True)]
        tifffile.imwrite("in", RGB, photometric="rgb", byteorder=order, metadata=None, extratags=tags)
        expected = np.rot90(RGB, -1)
    else:
        value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I", 8: "h2x", 9: "i"}[type_], 6)
        head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, type_, 1)
        lossless = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(RGB).save("in", kind, exif=b"Exif\0\0" + head + value + bytes(4), **lossless)
        with Image.open("in") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_picture(Path("in")).colour, expected)
    Path("in").rename("in.tif")
    assert np.array_equal(read_image(Path("in.tif"))[..., ::-1], expected) or kind == "JPEG"  # which is not exact
    assert read_image(Path("in.tif")).shape == expected.shape


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


def long_exif(length: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * length
    return exif.tobytes()


def test_jpeg_keeps_the_longest_exif_that_it_can() -> None:
    overhead = len(long_exif(1000)) - 1000
    for length in (65_533 - overhead, 65_534 - overhead):
        warned: list[str] = []
        picture = Picture(RGB, metadata=Metadata((9, 6), exif=long_exif(length)[6:]))
        Path("out.jpg").write_bytes(encode_picture(picture, ".jpg", warn=warned.append))
        is_kept = bool(read_picture(Path("out.jpg")).metadata.exif)
        assert is_kept != bool(warned)
        assert is_kept == (length == 65_533 - overhead)


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


@pytest.mark.parametrize("suffix", sorted(FORMATS))
@pytest.mark.parametrize(("gray", "alpha", "bits"), [*itertools.product((False, True), (False, True), (8, 16))])
def test_every_format_keeps_what_it_can_and_refuses_the_rest(suffix: str, gray: bool, alpha: bool, bits: int) -> None:
    kind, path, icc = FORMATS[suffix], Path(f"out{suffix}"), None if gray else ICC  # an RGB profile
    is_deep = bits == 16 and kind in ("PNG", "TIFF")
    if not is_deep:
        colour = np.linspace(0, 255, 32).astype(np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2)
        given = colour if bits == 8 else colour.astype(np.uint16) * 257
    else:
        given = colour = noise(20, 32, 1, dtype=np.uint16).repeat(3, 2) if gray else noise(20, 32, 3, dtype=np.uint16)
    picture = Picture(given, given[:, ::-1, 0] if alpha else None, gray, Metadata((32, 20), icc))
    if alpha and kind in ("JPEG", "BMP"):
        with pytest.raises(BadImageError, match="has transparency, which .* cannot keep: give --ext png or --alpha"):
            write_picture(picture, path)
        assert list(Path().iterdir()) == []
        # One that hides nothing is not lost.
        picture = replace(picture, alpha=np.full_like(given[:, :, 0], np.iinfo(given.dtype).max))
        alpha = False
    write_picture(picture, path, quality=100)
    again = read_picture(path)
    assert again.colour.dtype == colour.dtype
    assert np.abs(again.colour.astype(int) - colour.astype(int)).max() <= (3 if kind == "JPEG" else 0)
    assert np.array_equal(again.alpha, colour[:, ::-1, 0]) if alpha else again.alpha is None
    assert again.gray == (gray and kind != "WEBP" and not (alpha and is_deep))
    assert kind == "BMP" or again.metadata.icc == icc
    # Others see the same.
    seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert seen is not None
    assert seen.dtype == colour.dtype
    with Image.open(path) as image:
        image.load()
        assert kind == "BMP" or image.info.get("icc_profile") == icc


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("space", [b"RGB ", b"CMYK", b"Lab "])
def test_a_result_has_no_profile_of_other_pixels(suffix: str, mode: str, space: bytes) -> None:
    """sharp#131: a profile for CMYK in a picture of RGB, and the reverse."""
    icc = ICC[:16] + space + ICC[20:]
    Image.fromarray(RGB).convert(mode).save(f"in{suffix}", icc_profile=icc)
    said: list[str] = []
    write_picture(read_picture(Path(f"in{suffix}")), Path("out.png"), warn=said.append)
    with Image.open("out.png") as image:
        kept = image.info.get("icc_profile")
    assert kept == (icc if (mode, space) == ("RGB", b"RGB ") else None)
    # That of CMYK is used up.
    assert said == ([f"dropped: ICC profile for {space.decode().strip()}"] if mode == "RGB" and not kept else [])


# Named, because a profile has the second in which it is made, and the processes of the suite must agree on names.
@pytest.mark.parametrize("content", [zlib.compress(ICC)[:60], zlib.compress(ICC[:60])], ids=["stream", "profile"])
def test_a_profile_that_is_cut_off_is_dropped_and_named(content: bytes) -> None:
    Path("in.png").write_bytes(join(cv2.imencode(".png", RGB)[1].tobytes(), [(b"iCCP", b"x\0\0" + content)]))
    said: list[str] = []
    assert b"iCCP" not in encode_picture(read_picture(Path("in.png")), ".png", warn=said.append)
    assert said in (["dropped: damaged iCCP"], ["dropped: damaged ICC profile"])


@pytest.mark.parametrize(
    ("before", "behind", "kept"),
    [([], [(1, 1)], True), ([(1, 1)], [(1, 1)], True), ([(1, 1), (1, 1)], [], True), ([(1, 2)], [(2, 2)], True),
     ([(2, 2), (1, 2)], [], True), ([(1, 2)], [], False), ([], [(2, 2)], False)],
)  # fmt: skip
def test_a_profile_of_a_jpeg_is_kept_wherever_it_stands(
    before: list[tuple[int, int]], behind: list[tuple[int, int]], kept: bool
) -> None:
    """Pillow#4613: behind the frame's header, or twice."""
    data, half = cv2.imencode(".jpg", RGB)[1].tobytes(), len(ICC) // 2
    halves = {(1, 1): ICC, (1, 2): ICC[:half], (2, 2): ICC[half:]}
    parts = {part: b"ICC_PROFILE\0" + bytes(part) + content for part, content in halves.items()}
    segments = {part: b"\xff\xe2" + struct.pack(">H", len(text) + 2) + text for part, text in parts.items()}
    first, last = (b"".join(segments[part] for part in side) for side in (before, behind))
    scan = data.index(b"\xff\xda")
    Path("in.jpg").write_bytes(data[:2] + first + data[2:scan] + last + data[scan:])
    said: list[str] = []
    write_picture(read_picture(Path("in.jpg")), Path("out.jpg"), warn=said.append)
    with Image.open("out.jpg") as image:
        assert image.info.get("icc_profile") == (ICC if kept else None)
    assert len(said) == (not kept)
    assert kept or "ICC profile" in said[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_that_lacks_its_end_alone_is_read_whole(dtype: Any) -> None:
    """ImageMagick#6790: one byte short; OpenCV, which decodes 16 bits, refuses it."""
    pixels = noise(80, 90, 3, dtype=dtype)
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    assert data.count(b"IDAT") > 1
    for length in (len(data) - 1, len(data) - 12):
        Path("in.png").write_bytes(data[:length])
        picture = read_picture(Path("in.png"))
        assert np.array_equal(picture.colour, pixels)
        assert picture.metadata.dropped == ()
    Path("in.png").write_bytes(data[: data.rindex(b"IDAT") - 4])
    with pytest.raises(BadImageError, match="truncated"):
        read_picture(Path("in.png"))


def test_the_fourth_byte_of_a_plain_bmp_is_no_alpha() -> None:
    """SDL_image#64: a header of 40 bytes knows no alpha, and the byte is mostly 0."""
    pixels = np.dstack([RGB[::-1, :, ::-1], np.zeros(RGB.shape[:2], np.uint8)])
    height, width = RGB.shape[:2]
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, pixels.nbytes, 0, 0, 0, 0)
    Path("in.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 54 + pixels.nbytes, 0, 0, 54) + header + pixels.tobytes())
    picture = read_picture(Path("in.bmp"))
    assert picture.alpha is None
    assert np.array_equal(picture.colour, RGB)


def _frames(path: str) -> None:
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])


def _cut(path: str) -> None:
    content = write_noise(path, 60, 60).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def _far(path: str) -> None:
    """android-gif-drawable#243: its one frame lies far outside of its screen."""
    content = bytearray(write_noise(path, 12, 10, 1).read_bytes())
    frame = content.index(b",\0\0\0\0\x0a\0\x0c\0")
    content[frame + 1 : frame + 5] = struct.pack("<HH", 2602, 2801)
    Path(path).write_bytes(content)


def _wrong_stream(path: str) -> None:
    before, mark, pixels = write_noise(path, 4, 4).read_bytes().partition(b"IDAT")
    Path(path).write_bytes(before + mark + bytes(9) + pixels[9:])


def _wrong_header(path: str) -> None:
    content = write_noise(path, 4, 4).read_bytes()
    Path(path).write_bytes(content[:29] + b"none" + content[33:])


@pytest.mark.parametrize(("colours", "length"), [(0, 3), (3, 4)])
def test_a_transparent_value_that_is_too_short_or_long_is_ignored(colours: int, length: int) -> None:
    """pytorch/vision#3613, and libpng#822: more of them than the palette has colours; as by browsers."""
    image = Image.open(write_noise("a.png", 5, 7))
    (image.quantize(colours) if colours else image).save("a.png")
    before, mark, pixels = Path("a.png").read_bytes().partition(b"IDAT")
    chunk = join(bytes(HEADER_END), [(b"tRNS", bytes(length))])[HEADER_END:]
    Path("short.png").write_bytes(before[:-4] + chunk + before[-4:] + mark + pixels)
    picture, plain = read_picture(Path("short.png")), read_picture(Path("a.png"))
    assert np.array_equal(picture.colour, plain.colour)
    assert picture.alpha is None
    assert picture.metadata.dropped == ("tRNS",)


def test_a_palette_that_is_a_suggestion_limits_no_transparent_value() -> None:
    Image.new("RGB", (7, 5), (9, 99, 199)).save("a.png")
    value = (b"tRNS", struct.pack(">3H", 9, 99, 199))
    Path("a.png").write_bytes(join(Path("a.png").read_bytes(), [(b"PLTE", bytes(3)), value]))
    alpha = read_picture(Path("a.png")).alpha
    assert alpha is not None
    assert not alpha.any()


@pytest.mark.parametrize(
    ("path", "write", "message"),
    [
        ("header.png", _wrong_header, "is damaged at its start: save it anew"),
        # stable-diffusion-webui#14380
        ("stream.png", _wrong_stream, "cannot be read .broken data stream.*: save it anew"),
        ("far.gif", _far, "shows nothing: its frame is outside of its 10 x 12 pixels"),
        ("moving.gif", _frames, "has 2 frames or pages"),
        ("moving.webp", _frames, "has 2 frames or pages"),
        ("moving.png", _frames, "has 2 frames or pages"),
        ("pages.tif", _frames, "has 2 frames or pages"),
        ("cut.png", _cut, "cannot be read .*truncated"),
        ("cut.jpg", _cut, "cannot be read .*truncated"),
        ("empty.png", lambda path: Path(path).touch(), "is empty"),
        ("text.png", lambda path: Path(path).write_text("hello"),
         "is not an image of a supported type .*PNG, JPEG, WEBP, TIFF"),
        ("a.mp4", lambda path: Path(path).write_bytes(b"\0\0\0\x20ftypisom" + bytes(99)), "a video.*`ffmpeg -i VID"),
        ("a.avi", lambda path: Path(path).write_bytes(b"RIFFxxxxAVI LIST" + bytes(99)), "is a video, take"),
        ("a.mkv", lambda path: Path(path).write_bytes(b"\x1aE\xdf\xa3" + bytes(99)), "is a video, take"),
        # Anime4K#249: textures.
        ("texture.tga", lambda path: Image.new("RGBA", (4, 4)).save(path), "is TGA, convert it first"),
        ("a.ico", lambda path: Image.new("RGBA", (16, 16)).save(path), "is an icon, convert it first"),
        ("float.tif", lambda path: tifffile.imwrite(path, np.ones((9, 9), np.float32)),
         "floating values of 32 bits"),
        ("none.png", lambda path: None, "No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_the_reason(path: str, write: Any, message: str) -> None:
    write(path)
    with pytest.raises(BadImageError, match=message):
        read_picture(Path(path))


def test_what_pillow_was_built_without_is_told_before_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow#2309"""
    Image.new("RGB", (4, 4)).save("a.webp")
    Path("damaged.webp").write_bytes(Path("a.webp").read_bytes()[:12])
    with pytest.raises(BadImageError, match="^is not an image of a supported type"):
        read_picture(Path("damaged.webp"))
    monkeypatch.setattr("dp_basicsr.images.opening.READ_FORMATS", ("PNG", "TIFF"))
    for module in ("opening", "write"):
        monkeypatch.setattr(f"dp_basicsr.images.{module}.LACKING", {"WEBP"})
    with pytest.raises(BadImageError, match="is WEBP, which this Pillow was built without: `pip install"):
        read_picture(Path("a.webp"))
    with pytest.raises(BadImageError, match="cannot be written as WEBP, which this Pillow was built without: `pip"):
        refuse_unwritable("WEBP", 4, 4, None)


def test_more_than_4_gb_are_refused_as_bmp_and_written_as_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow#4274: such a BMP was refused after it had been computed."""
    with pytest.raises(BadImageError, match="would become 40000 x 36000, and BMP ends at 4 GB: give --ext png"):
        refuse_unwritable("BMP", 40000, 36000, None)
    picture = Picture(np.zeros((16, 16, 3), np.uint8))
    assert encode_picture(picture, ".tif")[2] == 42
    monkeypatch.setattr("dp_basicsr.images.write._LARGEST", 16 * 16 * 3 - 1)
    assert encode_picture(picture, ".tif")[2] == 43
    with pytest.raises(BadImageError, match="BMP ends at 4 GB"):
        encode_picture(picture, ".bmp")


def test_a_pillow_from_before_avif_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 11.3: "Unknown feature 'avif'" at each start."""
    monkeypatch.delitem(features.modules, "avif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "AVIF" in runpy.run_path(opening.__file__)["LACKING"]


def test_a_bomb_is_refused_before_decoding() -> None:
    """realesrgan-gui#34: in words of our own, not in Pillow's about an attack."""
    Path("bomb.png").write_bytes(claim(write_noise("bomb.png", 4, 4).read_bytes(), 60_000, 60_000))
    for read, limit in ((read_picture, "1073.74"), (read_image, "134.218")):
        with pytest.raises(BadImageError, match=f"more than {limit} megapixels: cut it into parts$"):
            read(Path("bomb.png"))


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


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="of Linux")
def test_too_large_for_the_memory() -> None:
    """Upscayl#867: the system killed the program, without a word."""
    with pytest.raises(BadImageError, match="would become 999999 x 9999999, which takes .* GB .*: give a smaller"):
        refuse_without_memory(999999, 9999999, RGB)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 6.0),
        ({"memory.max": "4000000000", "memory.stat": "anon 1000000000\nfile 2900000000\n"}, 5.0),
        ({"memory.max": "max\n", "memory.stat": "anon 1000000000\n"}, 6.0),
        ({"memory/memory.limit_in_bytes": "3000000000\n", "memory/memory.stat": "cache 9\nrss 1000000000\n"}, 4.0),
    ],
)
def test_the_memory_is_that_of_a_container_and_swap(
    files: dict[str, str], free: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = "MemTotal: 9000000 kB\nMemAvailable: 3906250 kB\nSwapFree: 1953125 kB\n"
    monkeypatch.setattr("dp_basicsr.images.write.open", lambda *_, **__: io.StringIO(meminfo), raising=False)
    monkeypatch.setattr("dp_basicsr.images.write.CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for picture, size in ((RGB, 6), (RGB.astype(np.uint16), 12)):
        width = int(free * 1e9) // size // 10000
        refuse_without_memory(width, 10000, picture)
        with pytest.raises(BadImageError, match=rf"\({free} are free\)"):
            refuse_without_memory(width + 1, 10000, picture)


def test_what_is_computed_is_written_however_little_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dp_basicsr.images.write.open", lambda *_, **__: io.StringIO("MemAvailable: 0 kB"), raising=False
    )
    with pytest.raises(BadImageError, match=r"0.0 are free"):
        refuse_without_memory(5, 4, RGB)
    monkeypatch.setattr("dp_basicsr.images.write.open", lambda *_, **__: io.StringIO("MemFree: 9 kB"))
    refuse_without_memory(5, 4, RGB)  # WSL 1 does not tell what is available
    assert encode_picture(Picture(np.zeros((4, 5, 3), np.uint8)), ".png")


@pytest.mark.parametrize(
    ("source", "target", "way"),
    [
        ("WEBP a.webp", "b.webp", "--quality 100"),
        ("PNG a.webp", "b.webp", "--quality 100"),
        ("WEBP a.jpg", "b.jpg", "--ext png"),
        ("PNG a.JPEG", "b.JPEG", "--ext png"),
        ("TIFF a.jpg", "b.jpg", "--ext png"),
        ("PNG a.jpg", "b.png", ""),
        ("PNG a.png", "b.jpg", ""),  # asked for
        ("WEBP a.webp", "b.webp 100", ""),
        ("lossy a.webp", "b.webp", ""),
        ("lossy a.jpg", "b.jpg", ""),
    ],
)
def test_what_is_lossless_does_not_lose_under_its_own_name_in_silence(source: str, target: str, way: str) -> None:
    (kind, file), (result, *quality) = source.split(), target.split()
    format_of = {"lossy": "WEBP"}.get(kind, kind)
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    image.save(file, format_of, lossless=kind != "lossy")
    said: list[str] = []
    write_picture(read_picture(Path(file)), Path(result), *map(int, quality), warn=said.append)
    assert said == ([f"dropped: lossless coding, which {way} keeps"] if way else [])
