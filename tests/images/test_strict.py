"""Images that are read, and images that are refused."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import DiskClient
from dp_basicsr.deploy.batch import find_jobs
from dp_basicsr.errors import UserError
from dp_basicsr.images import strict
from dp_basicsr.images.files import BadImageError, find_images, left_out
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.strict import encode_png, in_srgb, read_image

import cv2
import numpy as np
import pytest
import tifffile
from basicsr.utils import imfrombytes
from PIL import Image

from tests.support.images import claim, noise, smooth_noise

COLOUR = noise(20, 30, 3)
HERE = Path()


def coded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def saved(image: Image.Image, **options: Any) -> bytes:
    image.save(buffer := io.BytesIO(), "PNG", **options)
    return buffer.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def frames(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, kind, save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    return buffer.getvalue()


def test_colour_survives_a_round_trip_also_under_a_name_beyond_ascii() -> None:
    Path("büld.png").write_bytes(encode_png(COLOUR))
    np.testing.assert_array_equal(read_image(Path("büld.png")), COLOUR)
    opaque = np.dstack([COLOUR, np.full_like(COLOUR[:, :, :1], 255)])
    Path("büld.png").write_bytes(coded(opaque))
    np.testing.assert_array_equal(read_image(Path("büld.png")), COLOUR, "an opaque alpha is dropped")


def test_gray_stays_gray() -> None:
    Path("a.png").write_bytes(encode_png(COLOUR[:, :, 0]))
    np.testing.assert_array_equal(read_image(Path("a.png")), COLOUR[:, :, 0])


@pytest.mark.parametrize("alpha", [254, 255])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_opaque_alpha_beside_gray_of_a_tiff_is_dropped(compression: str | None, alpha: int) -> None:
    Image.merge("LA", [Image.fromarray(COLOUR[:, :, 0]), Image.new("L", (30, 20), alpha)]).save(
        "a.tif", None, compression=compression
    )
    with nullcontext() if alpha == 255 else pytest.raises(BadImageError, match="alpha or data beside gray"):
        np.testing.assert_array_equal(read_image(Path("a.tif")), COLOUR[:, :, 0])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB"])
def test_pillow_warns_of_no_size_below_our_limit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    Image.fromarray(COLOUR).convert(mode).save("a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(Path("a.tif"))
        assert in_srgb(image, Path("a.tif")) is image


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coded(COLOUR.astype(np.uint16) * 257), "16 bits per channel, expected 8: magick "),
        (coded(np.dstack([COLOUR, COLOUR[:, :, :1]])), "is colour with alpha or a channel of data "),
        (saved(Image.fromarray(COLOUR[..., :2].copy(), "LA")), "is gray with alpha "),
        (
            saved(Image.fromarray(COLOUR), transparency=tuple(COLOUR[0, 0].tolist())),
            "is colour with a transparent value",
        ),
        (b"", "is empty"),
        (b"no image", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|truncated"),
        (flipped(encode_png(COLOUR)), "not an image|cannot be read"),
        # waifu2x-ncnn-vulkan#165: compressed without a header, with other colours
        (
            encode_png(COLOUR).replace(b"\0\0\0\rIHDR", b"\0\0\0\4CgBI\x50\0\x20\2\0\0\0\0\0\0\0\rIHDR"),
            "as Xcode packs it",
        ),
        *((frames(kind), "has 2 frames or pages") for kind in ("GIF", "PNG", "WEBP", "TIFF")),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_intact_image_of_8_bits_is_refused(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("a.png").write_bytes(content)
    with pytest.raises(BadImageError, match=message):
        read_image(Path("a.png"))


def write_tiff(name: str, indices: np.ndarray, bits: int, palette: np.ndarray | None) -> None:
    """Write (H, W) of 1 to 8 bits without compression, which Pillow and tifffile write in 1 and 8 alone."""
    per, (height, width) = 8 // bits, indices.shape
    parts = np.pad(indices, ((0, 0), (0, -width % per))).reshape(height, -1, per).astype(np.uint8)
    data = np.bitwise_or.reduce(parts << (8 - bits * np.arange(1, per + 1)), axis=2).astype(np.uint8).tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1 if palette is None else 3),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]  # fmt: skip
    start = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    colours = b"" if palette is None else (palette.T.astype("<u2") * 257).tobytes()
    count = len(tags) + (palette is not None)
    if palette is not None:
        entries += struct.pack("<HHII", 320, 3, palette.size, start + 2 + 12 * count + 4)
    directory = struct.pack("<H", count) + entries + bytes(4) + colours
    Path(name).write_bytes(b"II" + struct.pack("<HI", 42, start) + data.ljust(start - 8, b"\0") + directory)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("has_palette", [False, True])
def test_a_tiff_of_few_bits_has_its_pixels_or_is_refused(bits: int, has_palette: bool) -> None:
    """libvips/libvips#1609: OpenCV takes a palette of two colours for black and white, and has no 2 and 4 bits."""
    indices = np.random.default_rng(0).integers(0, 2**bits, (9, 259))
    palette = np.random.default_rng(1).integers(0, 256, (2**bits, 3)) if has_palette else None
    write_tiff("a.tif", indices, bits, palette)
    expected = (indices * 255 // (2**bits - 1))[..., None] if palette is None else palette[indices]
    np.testing.assert_array_equal(read_picture(Path("a.tif")).colour, expected.repeat(3 // expected.shape[2], 2))
    is_read = bits in ((4, 8) if has_palette else (1, 8))
    refused = pytest.raises(BadImageError, match="bits that OpenCV misreads or does not read: save it as PNG")
    with nullcontext() if is_read else refused:
        np.testing.assert_array_equal(np.atleast_3d(read_image(Path("a.tif")))[..., ::-1], expected)


@pytest.mark.parametrize(
    ("shifts", "fourth", "is_read"),
    [((16, 8, 0), 0, True), ((16, 8, 0), 128, True), ((24, 16, 8), 0, False), ((0, 8, 16), 0, False)],
)
def test_a_bmp_with_masks_has_its_colours_or_is_refused(
    shifts: tuple[int, int, int], fourth: int, is_read: bool
) -> None:
    """opencv#23445, #27555: it ignores them, so training saw other colours; padding counted as alpha."""
    colours = sum(COLOUR[::-1, :, 2 - i].astype("<u4") << shift for i, shift in enumerate(shifts))
    pixels = (colours + np.uint32(fourth << 24)).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 30, 20, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<3I", *(255 << shift for shift in shifts))
    Path("a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66) + header + masks + pixels)
    if is_read:
        np.testing.assert_array_equal(read_image(Path("a.bmp")), COLOUR)
    else:
        for read in (read_image, DiskClient().get):
            with pytest.raises(BadImageError, match="masks that OpenCV ignores|BMP bitfields"):
                read(Path("a.bmp"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_truncated_file_is_refused(suffix: str) -> None:
    data = coded(np.kron(COLOUR, np.ones((5, 5, 1), np.uint8)), suffix)
    for share in (0.0, 0.3, 0.9, 0.99):
        Path(f"a{suffix}").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadImageError):
            read_image(Path(f"a{suffix}"))


@pytest.mark.parametrize("limit", [89_478_485, None])  # Pillow's own, which some libraries switch off
@pytest.mark.parametrize("side", [12_000, 60_000])  # beyond our limit, and beyond Pillow's as well
def test_too_many_pixels_are_refused_before_decoding(
    side: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    Path("bomb.png").write_bytes(claim(encode_png(COLOUR), side, side))
    with pytest.raises(BadImageError, match=r"more than 134.218 megapixels|cannot be read \(.*3600000000"):
        read_image(Path("bomb.png"))


def test_an_image_just_below_the_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.png").write_bytes(encode_png(COLOUR))
    monkeypatch.setattr(strict, "MAX_PIXELS", 20 * 30)
    assert read_image(Path("a.png")).shape == (20, 30, 3)
    monkeypatch.setattr(strict, "MAX_PIXELS", 20 * 30 - 1)
    with pytest.raises(BadImageError, match="megapixels"):
        read_image(Path("a.png"))


def test_find_images_takes_images_only_and_sorts_and_the_others_are_counted() -> None:
    assert left_out(HERE) == ""
    for name in ("b.PNG", "a.jpg", ".hidden.png", "b.HEIC", "c.heic", "notes"):
        Path(name).touch()
    Path("sub").mkdir()
    Path("sub", "c.png").touch()
    assert [path.name for path in find_images(HERE)] == ["a.jpg", "b.PNG"]
    assert left_out(HERE) == ".: ignored 4 that are not images (2 .heic, 1 folder, 1 no suffix)"
    Path("folder.png/class_1").mkdir(parents=True)
    assert len(find_images(HERE)) == 2
    with pytest.raises(UserError, match=r"no image in folder.png: .*; give its folders one by one \(class_1\)"):
        find_images(Path("folder.png"))
    Path("sub", "c.png").rename("sub/1.mp4")  # CodeFormer#366
    with pytest.raises(UserError, match=r"no image in sub: .*; sub: ignored 1 that are not images \(1 .mp4\)"):
        find_images(Path("sub"))
    with pytest.raises(UserError, match="no such folder"):
        find_images(Path("missing"))


@pytest.mark.parametrize("target", ["/nowhere/a.png", "link.png"])
def test_a_link_to_nothing_is_an_image_that_cannot_be_read(target: str) -> None:
    """refinery-platform#180"""
    link = HERE / "link.png"
    link.symlink_to(target)
    assert find_images(HERE) == [link]
    with pytest.raises(BadImageError, match=rf"is a link to {target}, and cannot be read"):
        read_image(link)
    for source in (".", "link.png", "*.png"):
        jobs, others = find_jobs([source], Path("out"))
        assert ([job.source for job in jobs], others) == ([link], [])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<?xml version='1.0'?>\n<svg>", "SVG"),
        (b"DDS \x7c\0\0\0", "DDS"),
    ],
)
def test_a_picture_of_another_type_is_named(data: bytes, kind: str) -> None:
    """gradio#7482: a phone's HEIC, also under the name of a JPEG."""
    Path("a.jpg").write_bytes(data)
    with pytest.raises(BadImageError, match=rf"is {kind}, convert it first: it is not .* \(PNG, JPEG"):
        read_image(Path("a.jpg"))


@pytest.mark.parametrize(
    ("pixels", "how", "message"),
    [
        # CellProfiler#976: a microscope's
        (COLOUR.astype(np.int16), {}, "signed values of 16 bits, expected unsigned ones of 8 or 16: shift and scale"),
        (COLOUR[:, :, 0].astype(np.int16), {}, "signed values of 16 bits"),
        (COLOUR[:, :, 0].astype(np.float32), {}, "floating values of 32 bits"),
        (COLOUR[:, :, 0].astype(np.uint32), {}, "has values of 32 bits"),
        # satlas-super-resolution#7: a satellite's bands
        (
            COLOUR[:, :, :2],
            {"photometric": "minisblack", "planarconfig": "contig"},
            "other channels or values than gray",
        ),
        # ufo-filters#68: ImageJ's stack, of which the first page alone has a header
        (COLOUR[:, :, 0], {"description": "ImageJ=1.53\nimages=3\n", "metadata": None}, "has 3 frames or pages"),
        # imageio#681: a volume in one page
        (np.zeros((8, 16, 16), np.uint8), {"volumetric": True, "tile": (4, 16, 16)}, "has 8 frames or pages"),
    ],
)
def test_a_tiff_of_science_is_refused_with_the_reason(pixels: np.ndarray, how: dict[str, Any], message: str) -> None:
    tifffile.imwrite("a.tif", pixels, **how)
    with Path("a.tif").open("ab") as file:
        file.write(2 * pixels.tobytes())
    readers: list[Any] = [read_image, DiskClient().get]
    # Upscaling takes the first bands, and says so.
    for read in readers if pixels.shape[2:] == (2,) else [*readers, read_picture]:
        with pytest.raises(BadImageError, match=message):
            read(Path("a.tif"))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize(("colours", "kind"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_a_tiff_with_a_further_channel_is_not_read_without_it(colours: int, kind: int, planes: Any, bits: int) -> None:
    """OpenCV ignores those beside gray, and makes 8 bits of 16 in planes; of data it was said that it is alpha."""
    pixels = np.zeros((5, 6, colours + 1), np.uint8 if bits == 8 else np.uint16)
    stored, photometric = np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels, "rgb" if colours == 3 else None
    tifffile.imwrite("a.tif", stored, photometric=photometric, planarconfig=planes, extrasamples=[kind], metadata=None)
    with pytest.raises(BadImageError, match="alpha or (a channel of )?data|16 bits|other channels or values"):
        read_image(Path("a.tif"))


def test_values_of_no_stated_kind_are_unsigned() -> None:
    tifffile.imwrite("a.tif", COLOUR.view(np.int8), photometric="rgb")
    with tifffile.TiffFile("a.tif", mode="r+") as file:
        file.pages[0].tags[339].overwrite((4, 4, 4))
    np.testing.assert_array_equal(read_picture(Path("a.tif")).colour, COLOUR)


def test_an_imagej_header_without_its_planes_is_one_picture() -> None:
    tifffile.imwrite("a.tif", COLOUR, description="ImageJ=1.53\nimages=3\n", metadata=None)
    assert read_image(Path("a.tif")).shape == COLOUR.shape


def test_an_archive_is_to_be_unpacked() -> None:
    """Sana#111, and comics as .cbz."""
    with tarfile.open("a.png", "w") as tar:
        tar.add(__file__, "a")
    with pytest.raises(BadImageError, match="is an archive, unpack it first"):
        read_picture(Path("a.png"))


@pytest.mark.parametrize("suffix", [".jpg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".gif"])
@pytest.mark.parametrize("gray", [False, True])
def test_exif_orientation_is_applied_as_in_basicsr(suffix: str, gray: bool) -> None:
    pixels, path = smooth_noise(24, 40, 1), Path(f"a{suffix}")
    kind = {".jpe": "JPEG", ".jfif": "JPEG", ".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels[..., 0] if gray else pixels).save(path, kind, exif=exif)
        theirs = np.round(imfrombytes(path.read_bytes(), float32=True) * 255).astype(np.uint8)
        ours = read_image(path)
        assert np.array_equal(np.repeat(ours[..., None], 3, 2) if ours.ndim == 2 else ours, theirs), orientation
        assert find_images(HERE) == [path]


def test_a_broken_exif_block_is_ignored() -> None:
    """Pillow#8348: one with two marks, too, in which Pillow finds an orientation, and viewers do not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for block in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0Exif\0\0" + exif.tobytes()[6:]):
        Image.fromarray(smooth_noise(24, 40, 1)).save("a.jpg", exif=block)
        assert read_image(Path("a.jpg")).shape == read_picture(Path("a.jpg")).colour.shape == (24, 40, 3)


def test_the_preview_of_a_raw_photograph_is_not_the_picture() -> None:
    """ImageMagick#5326: DNG, NEF and ARW are TIFF with a preview first and the picture below it."""
    for below in (0, 1):
        with tifffile.TiffWriter("a.dng") as file:
            file.write(COLOUR[::2, ::2], photometric="rgb", subfiletype=1, subifds=below)
            for _ in range(below):
                file.write(COLOUR[:, :, 0], photometric="minisblack")
        for read in (read_image, read_picture):
            with pytest.raises(BadImageError, match="develop it first") if below else nullcontext():
                read(Path("a.dng"))


def test_smaller_copies_of_a_tiff_do_not_count() -> None:
    with tifffile.TiffWriter("a.tif") as file:
        file.write(COLOUR, photometric="rgb")
        file.write(COLOUR[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(Path("a.tif")), COLOUR[:, :, ::-1])
    assert np.array_equal(read_picture(Path("a.tif")).colour, COLOUR)
