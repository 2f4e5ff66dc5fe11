"""Generated image files, names and metadata, compared with other decoders and exiftool; ``make fuzz`` draws more."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr.data.preparation.convert import make_lr
from dp_basicsr.data.preparation.extract import Extraction, Window, extract_subimages
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.deploy.batch import find_jobs, refuse_unwritable
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import FORMATS, BadImageError, missing_hint, name_hint, require_paths
from dp_basicsr.images.metadata import Metadata, Picture
from dp_basicsr.images.png import HEADER_END, join
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.strict import read_image
from dp_basicsr.images.write import write_picture
from dp_basicsr.images.xmp import corrected
from dp_basicsr.utils.atomic_io import atomic_write, replacing

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, features
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from tests.support.fuzz import draws
from tests.support.images import write_noise

Array = np.ndarray[Any, Any]
SIZE = 24, 17  # width, height
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(rng: random.Random, shape: tuple[int, ...], dtype: Any = np.uint8, top: int | None = None) -> Array:
    values = np.random.default_rng(rng.randrange(2**32))
    return values.integers(0, np.iinfo(dtype).max + 1 if top is None else top + 1, shape, dtype)


def tiff_of_tifffile(rng: random.Random, path: Path) -> Picture:
    """8 or 16 bits, gray or RGB, further channels of any kind and order, strips, tiles or planes, upright or turned."""
    dtype = rng.choice((np.uint8, np.uint16))
    top = np.iinfo(dtype).max
    colours = rng.choice((1, 3))
    # One of data, straight alpha, and one that the colours were multiplied by, which decides if it is there.
    extras = rng.sample(("unspecified", "unassalpha", "assocalpha", "unspecified"), rng.randrange(4))
    kind = "assocalpha" if "assocalpha" in extras else "unassalpha"
    pixels = noise(rng, (*SIZE[::-1], colours + len(extras)), dtype)
    alpha = pixels[..., colours + extras.index(kind)] if kind in extras else None
    is_white_zero = colours == 1 and rng.random() < 0.5
    shown = pixels[..., :colours]
    if kind == "assocalpha":
        assert alpha is not None
        shown[...] = shown.astype(np.uint32) * alpha[..., None] // top
    shown = top - shown if is_white_zero else shown
    if kind == "assocalpha":
        assert alpha is not None
        share = alpha[..., None].astype(np.float64)
        shown = np.where(share == 0, shown, np.minimum(shown * float(top) // np.maximum(share, 1), top)).astype(dtype)
    orientation = rng.randrange(1, 9)
    is_planar = pixels.shape[2] > 1 and rng.random() < 0.4
    tifffile.imwrite(
        path, pixels[..., 0] if pixels.shape[2] == 1 else np.moveaxis(pixels, 2, 0) if is_planar else pixels,
        photometric="rgb" if colours == 3 else "miniswhite" if is_white_zero else "minisblack",
        planarconfig=None if pixels.shape[2] == 1 else "separate" if is_planar else "contig",
        extrasamples=extras or None, tile=rng.choice((None, (16, 16))),
        byteorder=rng.choice("<>"), bigtiff=rng.random() < 0.2, compression=rng.choice((None, "adobe_deflate")),
        predictor=None, metadata=None, extratags=[(274, 3, 1, orientation, True)],
    )  # fmt: skip
    further = len(extras) - (alpha is not None)
    return Picture(
        upright(shown.repeat(3, 2) if colours == 1 else shown, orientation),
        None if alpha is None else upright(alpha, orientation),
        colours == 1,
        Metadata(dropped=(f"{further} further channels",) if further else ()),
    )


def upright(array: Array, orientation: int) -> Array:
    """Turn as EXIF's table says, by rotations and mirrors alone."""
    mirrored, quarters = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}[
        orientation
    ]
    return np.rot90(array[:, ::-1] if mirrored else array, quarters)


def png_of_chunks(rng: random.Random, path: Path) -> Picture:
    """Every depth and colour type of PNG, with a transparent colour or without, written by hand."""
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    depth, kind = rng.choice([(depth, kind) for kind in depths for depth in depths[kind]])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    top = 2**depth - 1
    samples = noise(rng, (*SIZE[::-1], channels), np.uint16, top)
    palette = noise(rng, (top + 1 if kind == 3 else 1, 4))
    has_key = rng.random() < 0.6
    key = samples[3, 4]
    bits = ((samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(SIZE[1], -1).astype(np.uint8)
    rows = np.packbits(bits, axis=1)
    chunks: list[tuple[bytes, bytes]] = []
    if kind == 3:
        chunks.append((b"PLTE", palette[:, :3].tobytes()))
    if has_key and kind in (0, 2, 3):
        chunks.append((b"tRNS", palette[:, 3].tobytes() if kind == 3 else key.astype(">u2").tobytes()))
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", *SIZE, depth, kind, 0, 0, 0)
    empty = join(
        b"\x89PNG\r\n\x1a\n".ljust(HEADER_END, b"?"), [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    )
    path.write_bytes(empty[:8] + empty[HEADER_END:])
    if kind == 3:
        return Picture(palette[samples[..., 0], :3], palette[samples[..., 0], 3] if has_key else None)
    shown = samples if depth == 16 else (samples * (255 // min(top, 255))).astype(np.uint8)
    opaque = np.iinfo(shown.dtype).max
    alpha = shown[..., -1] if kind in (4, 6) else None
    if has_key and kind in (0, 2):
        alpha = np.where((samples == key).all(2), 0, opaque).astype(shown.dtype)
    return Picture(shown[..., :1].repeat(3, 2) if kind in (0, 4) else shown[..., :3], alpha, kind in (0, 4))


def file_of_pillow(rng: random.Random, path: Path) -> Picture:
    """The formats, modes and compressions that Pillow writes, read again by Pillow."""
    kind, mode = rng.choice([
        *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")),
        *(("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")), *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")), *(("GIF", mode) for mode in ("L", "P", "RGB")),
        *(("AVIF", mode) for mode in ("RGB", "RGBA") if features.check("avif")),
    ])  # fmt: skip
    image = Image.fromarray(noise(rng, (*SIZE[::-1], 4))).convert("RGB" if mode in ("P", "CMYK") else mode)
    image = image.quantize(12) if mode == "P" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(1, 9)
    settings: dict[str, Any] = {} if kind in ("BMP", "GIF") else {"exif": exif}
    icc = SRGB if settings and mode in ("RGB", "RGBA") else None
    settings |= {"icc_profile": icc} if icc else {"transparency": 3} if (kind, mode) == ("GIF", "P") else {}
    if kind == "TIFF":
        settings["compression"] = rng.choice(
            ("group4",) if mode == "1" else (None, "tiff_lzw", "packbits", "tiff_deflate")
        )
    image.save(path, kind, **settings)
    with Image.open(io.BytesIO(path.read_bytes())) as again:  # by name, Pillow 12 leaves some TIFFs as they lie
        shown = again if kind == "TIFF" else ImageOps.exif_transpose(again)
        array = np.asarray(shown.convert("RGBA" if again.has_transparency_data else "RGB"))
    alpha = array[..., 3] if array.shape[2] == 4 else None
    # As it is stored: a gray GIF may have a palette.
    return Picture(array[..., :3], alpha, again.mode in ("1", "L", "LA"), Metadata(SIZE, icc))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_of_ycbcr_without_compression_is_read(orientation: int) -> None:
    """Pillow#1270: wrong colours; today's Pillow calls it truncated."""
    pixels = noise(random.Random(0), (12, 16, 3))
    Image.fromarray(pixels).convert("YCbCr").save("ycbcr.tif", tiffinfo={274: orientation})
    turned = {1: pixels, 3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1)}[orientation]
    assert abs(read_picture(Path("ycbcr.tif")).colour[..., :3].astype(int) - turned).max() <= 3
    os.truncate("ycbcr.tif", 400)
    with pytest.raises(BadImageError, match="is truncated"):
        read_picture(Path("ycbcr.tif"))


@pytest.mark.parametrize("compression", [None, "packbits"])
def test_a_tiff_s_predictor_is_left_out_where_its_compression_has_none(compression: str | None) -> None:
    """Pillow's copy of another TIFF's tags (sibling of tifffile#167): OpenCV and Pillow leave it out too."""
    pixels = noise(random.Random(0), (12, 16, 3))
    Image.fromarray(pixels).save("tagged.tif", compression=compression, tiffinfo={317: 2})
    assert (read_picture(Path("tagged.tif")).colour == pixels).all()


def test_further_channels_that_decoders_leave_out_are_named_or_the_tiff_refused() -> None:
    """Without a word Pillow leaves them out; OpenCV shows others as gray, which became "-1 further channels"."""
    rng = random.Random(0)
    Image.fromarray(noise(rng, (*SIZE[::-1], 4)), "RGBX").save("data.tif", compression="tiff_lzw")
    assert list(read_picture(Path("data.tif")).metadata.dropped) == ["1 further channels"]
    assert cv2.imwrite("gray.tif", noise(rng, (*SIZE[::-1], 3), np.uint16), [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    with tifffile.TiffFile("gray.tif", mode="r+") as file:
        file.pages[0].tags[262].overwrite(1)
    with pytest.raises(BadImageError, match="is a 16-bit TIFF of other kinds"):
        read_picture(Path("gray.tif"))


@pytest.mark.parametrize("unit", [1, 256, 257])
def test_a_tiff_s_palette_of_8_or_16_bits_has_its_colours(unit: int) -> None:
    """OSGeo/gdal#10310: colours off by one; with 8 bits OpenCV showed the picture, and upscaling a black one."""
    rng = random.Random(0)
    palette, indices = noise(rng, (256, 3)), noise(rng, SIZE[::-1])
    colours = palette.T.astype(np.uint16) * np.uint16(unit)
    tifffile.imwrite("palette.tif", indices, photometric="palette", colormap=colours)
    assert (read_picture(Path("palette.tif")).colour == palette[indices]).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_without_the_sizes_of_its_strips_is_read_or_refused(bits: int) -> None:
    """rasterio#1997 (OSGeo/gdal#2165): other readers could; here "zip() argument 2 is shorter"."""
    pixels = noise(random.Random(0), (*SIZE[::-1], 3), np.uint8 if bits == 8 else np.uint16)
    tifffile.imwrite("strips.tif", pixels, photometric="rgb", rowsperstrip=1, metadata=None)
    data = Path("strips.tif").read_bytes()
    # The tag's number becomes a private one.
    Path("strips.tif").write_bytes(data.replace(struct.pack("<HH", 279, 3), struct.pack("<HH", 65000, 3)))
    if bits == 8:
        assert (read_picture(Path("strips.tif")).colour == pixels).all()
    else:
        with pytest.raises(BadImageError, match="OpenCV cannot decode"):
            read_picture(Path("strips.tif"))


@pytest.mark.parametrize("make", [tiff_of_tifffile, png_of_chunks, file_of_pillow])
def test_a_generated_file_is_read_as_others_read_it_or_refused(make: Callable[..., Picture]) -> None:
    read = refused = 0
    for rng in draws(60):
        path = Path("generated")
        expected = make(rng, path)
        try:
            picture = read_picture(path)
        except BadImageError:
            refused += 1
            continue
        read += 1
        assert picture.colour.dtype == expected.colour.dtype
        assert np.array_equal(picture.colour, expected.colour)
        assert (picture.alpha is None) == (expected.alpha is None)
        assert picture.alpha is None or np.array_equal(picture.alpha, expected.alpha)
        assert picture.gray == expected.gray
        assert picture.metadata.icc == expected.metadata.icc
        assert picture.metadata.dropped == expected.metadata.dropped
    assert read > 20 * refused


# Groups and tags of exiftool that tell how the file stores its pixels, not what is known about the picture.
STORAGE_GROUPS = ("File", "System", "ExifTool", "Composite", "PNG-pHYs", "JFIF")
STORAGE = {
    "ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter", "Interlace", "BitsPerSample",
    "PhotometricInterpretation", "StripOffsets", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "Predictor",
    "PlanarConfiguration", "ExtraSamples", "SampleFormat", "SubfileType", "Orientation", "VP8Version", "WebP_Flags",
    "HorizontalScale", "VerticalScale", "ImageSize", "Megapixels", "SRGBRendering", "ProfileCMMType", "PixelUnits",
    "ProfileName",
}  # fmt: skip
DENSITY = ("XResolution", "YResolution", "ResolutionUnit", "PixelsPerUnitX", "PixelsPerUnitY", "PixelsPerMeterX",
           "PixelsPerMeterY")  # fmt: skip
WORDS = {"IFD1": "thumbnail", "ICC_Profile": "profile", "ICC": "profile", "XMP": "XMP", "ExifIFD": "EXIF",
         "IFD0": "EXIF", "IPTC": "IPTC"}  # fmt: skip
CHUNKS = {"BackgroundColor": "bKGD", "Gamma": "gAMA"}


def exiftool(*paths: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["exiftool", "-j", "-G1", "-n", "-a", *map(str, paths)], capture_output=True, text=True, check=False
    )
    return [{name: value for name, value in tags.items() if ":" in name} for tags in json.loads(done.stdout)]


def with_metadata(rng: random.Random, path: Path) -> None:
    """Write a picture that knows a random selection of everything that its format can hold."""
    kind = FORMATS[path.suffix]
    exif = Image.Exif()
    if rng.random() < 0.8:
        exif[0x010F], exif[0x8298], exif[0x0100], exif[0x0101] = "Maker", "\xa9 someone", *SIZE
        exif.get_ifd(0x8769).update({0xA002: SIZE[0], 0xA003: SIZE[1], 0x9003: "2020:01:01 00:00:00"})
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 7.0, 30.0)})
    if rng.random() < 0.5:
        exif[0x0112] = rng.randrange(1, 9)
    is_gray = rng.random() < 0.3
    settings: dict[str, Any] = {} if kind == "BMP" else {"exif": exif}
    if rng.random() < 0.7 and kind != "WEBP":
        settings["dpi"] = (300, 300)
    if rng.random() < 0.5 and kind != "BMP":
        settings["icc_profile"] = SRGB
    xmp = (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        b"<rdf:Description xmlns:dc='http://purl.org/dc/elements/1.1/' dc:source='a tree'/></rdf:RDF></x:xmpmeta>"
    )
    if rng.random() < 0.5 and kind in ("JPEG", "WEBP"):
        settings["xmp"] = xmp
    if kind == "JPEG" and rng.random() < 0.5:
        settings["comment"] = b"a comment"
    if kind == "PNG":
        settings["pnginfo"] = info = PngInfo()
        info.add_text("Author", "me", zip=rng.random() < 0.5)
        info.add_itxt("Description", "\xe9")
        info.add(b"gAMA", struct.pack(">I", 55000))
        info.add(b"bKGD", struct.pack(">3H", 1, 2, 3))
        if rng.random() < 0.5:
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    image = Image.fromarray(noise(rng, (*SIZE[::-1], 3)))
    (image.convert("L") if is_gray and kind != "WEBP" else image).save(path, **settings)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool (libimage-exiftool-perl)")
def test_what_exiftool_lists_is_kept_corrected_or_named(tmp_path: Path) -> None:
    pairs, said = list[tuple[Path, Path]](), list[str]()
    for number, rng in enumerate(draws(24)):
        before = tmp_path / f"{number}{rng.choice(('.png', '.jpg', '.webp', '.tif', '.bmp'))}"
        after = tmp_path / f"{number}_2{rng.choice((before.suffix, '.png', '.jpg', '.webp', '.tif', '.bmp'))}"
        with_metadata(rng, before)
        picture = read_picture(before)
        larger = replace(picture, colour=picture.colour.repeat(2, 0).repeat(3, 1))
        words: list[str] = []
        write_picture(larger, after, warn=words.append)
        pairs.append((before, after))
        said.append(" ".join(words))
        if len(pairs) == 24:
            compare(pairs, said)
            pairs, said = [], []


def compare(pairs: list[tuple[Path, Path]], said: list[str]) -> None:
    lost = []
    every = exiftool(*(path for pair in pairs for path in pair))
    for (before, after), words, old, new in zip(pairs, said, every[::2], every[1::2], strict=True):
        results = {name.partition(":")[2]: value for name, value in new.items()}
        with Image.open(after) as image:
            sides = {"ExifImageWidth": image.width, "ExifImageHeight": image.height}
        for name, value in old.items():
            group, _, tag = name.partition(":")
            if group in STORAGE_GROUPS or tag in STORAGE:
                continue
            sought = {CHUNKS.get(tag, tag), WORDS.get(group.partition("-")[0], tag), "EXIF" if group == "GPS" else tag}
            is_named = any(word in words for word in sought)
            is_kept = results.get(tag) == sides.get(tag, value)
            if tag.startswith(DENSITY):
                is_kept |= "density" in words or any(name in results for name in DENSITY)
            if not is_kept and not is_named:
                lost.append(f"{before.name} -> {after.name}: {name} {value!r} -> {results.get(tag)!r}; {words}")
    assert lost == []


def densities(tags: dict[str, Any]) -> set[tuple[int, int]]:
    """Every density that exiftool lists, in pixels per inch."""
    units = {"IFD0": {2: 1, 3: 2.54}, "JFIF": {1: 1, 2: 2.54}}
    pairs = [
        (units[group][unit], tags[f"{group}:XResolution"], tags[f"{group}:YResolution"])
        for group in units
        if (unit := tags.get(f"{group}:ResolutionUnit", 2)) in units[group] and f"{group}:XResolution" in tags
    ]
    pairs += [
        (0.0254, tags[f"{name}X"], tags[f"{name}Y"])
        for name in ("PNG-pHYs:PixelsPerUnit", "File:PixelsPerMeter")
        if tags.get(f"{name}X")
    ]
    return {(round(unit * across), round(unit * down)) for unit, across, down in pairs}


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool (libimage-exiftool-perl)")
def test_a_density_is_named_where_it_is_lost_and_none_is_made_up(tmp_path: Path) -> None:
    """A camera's JPEG has one in EXIF alone, which WebP keeps; Pillow makes up 72 where EXIF has none."""
    odd = [{282: density, 283: density} for density in (2**32 - 1, 70_000, TiffImagePlugin.IFDRational(1, 9))]
    usual: list[dict[int, Any]] = [{}, {282: 300, 283: 300}, {282: 100, 283: 50, 296: 3}]
    files = [("jpg", None), ("jpg", 300), ("jpg", 0), ("png", 300), ("png", None), ("webp", None), ("tif", None)]
    words: dict[tuple[Path, Path], list[str]] = {}
    for (kind, of_file), values in [*itertools.product(files, usual), *((("jpg", None), values) for values in odd)]:
        exif, before = Image.Exif(), tmp_path / f"{len(words)}.{kind}"
        for code, value in ({0x010F: "Maker"} | values).items():
            exif[code] = value
        Image.new("RGB", SIZE).save(before, exif=exif, **({"dpi": (of_file, of_file)} if of_file else {}))
        if kind == "jpg" and of_file is None:
            # Without JFIF's segment.
            data = before.read_bytes()
            before.write_bytes(data[:2] + data[20:])
        for suffix in (".png", ".jpg", ".webp", ".tif", ".bmp"):
            pair = before, tmp_path / f"of_{before.stem}{suffix}"
            write_picture(read_picture(before), pair[1], warn=words.setdefault(pair, []).append)
    paths = list(dict.fromkeys(path for pair in words for path in pair))
    listed = dict(zip(paths, map(densities, exiftool(*paths)), strict=True))
    for pair, said in words.items():
        old, new = (listed[path] for path in pair)
        is_named, case = "density" in " ".join(said), f"{pair[0].name} -> {pair[1].name}: {old} -> {new}; {said}"
        assert new <= old, case
        # TIFF and BMP cannot hold EXIF, but a density that is EXIF's alone (darktable#15715).
        assert new == old or is_named or ("EXIF" in " ".join(said) and new), case
        assert new < old or not is_named, case


def test_a_broken_link_as_output_is_refused_first(tmp_path: Path) -> None:
    """Upscayl#1352: computed, and not saved."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UserError, match="out is a link to nowhere, which is missing: choose another output"):
        refuse_unwritable(find_jobs([str(tmp_path / "a.png")], tmp_path / "out/sub")[0])


def test_a_link_as_output_stays(tmp_path: Path) -> None:
    """QGIS#48852: the file took the place of the link to it."""
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "link.png", tmp_path / "store/a.png"
    link.symlink_to(target)
    for value in (1, 2):
        write_picture(Picture(np.full((2, 2, 3), value, np.uint8), None, False), link)
        assert link.readlink() == target
        assert np.asarray(Image.open(target)).max() == value
        assert os.listdir(target.parent) == ["a.png"]
    # A store of versions (DVC, git-annex) protects its files by their modes, which root's rights pass over.
    target.chmod(0o444)
    write_picture(Picture(np.full((2, 2, 3), 3, np.uint8), None, False), link)
    assert not link.is_symlink()
    assert np.asarray(Image.open(target)).max() == 2
    link.unlink()
    link.symlink_to(target)
    # A device or a pipe, such as /dev/stdout, is written to; root's rename would replace it.
    reader, writer = os.pipe()
    with replacing(Path(f"/dev/fd/{writer}")) as temporary:
        temporary.write_text("text")
    assert os.read(reader, 9) == b"text"
    # A run's checkpoint does not change the earlier one that a user linked to.
    atomic_write(link, lambda file: file.write(b"new"))
    assert not link.is_symlink()
    assert np.asarray(Image.open(target)).max() == value


def test_any_legal_name_is_written_or_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """chaiNNer-org/chaiNNer#2772: names that are patterns, and beyond ASCII."""
    monkeypatch.setenv("HOME", "/nonexistent")
    for number, rng in enumerate(draws(30)):
        folder, output = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        letters = rng.choice(("x", "\u56fe", "e\u0301", "\U0001f333", "% [*]{}", "~", "-", "\udcff", "'\"\\", "a.b "))
        length = rng.choice((1, 20, 200, *range(244, 256)))
        stem = b"" if length < 5 else os.fsencode(letters * 255)[: length - 4]
        name = os.fsdecode(stem or b"x") + ".png"
        Image.fromarray(noise(rng, (4, 4))).save(folder / name)
        suffix = rng.choice(("", "", "_x4"))
        jobs, left_out = find_jobs([str(folder)], output, suffix=suffix)
        if name.startswith("."):
            continue
        assert left_out == []
        if len(os.fsencode(name + suffix)) > 255:
            with pytest.raises(UserError, match="cannot be written .*name"):
                refuse_unwritable(jobs)
            assert not output.exists()
            continue
        refuse_unwritable(jobs)
        (job,) = jobs
        # pex-tool/pex#2217: eCryptfs takes 143 bytes.
        output.mkdir()
        with replacing(job.target, ".1234567") as beside:
            assert len(os.fsencode(beside.name)) <= 143
            beside.touch()
        job.target.unlink()
        for _ in range(2):
            write_picture(read_picture(job.source), job.target)
        assert [path.name for path in output.iterdir()] == [job.target.name]


@pytest.mark.parametrize("names", [["café.png", "a.png"], ["ガ.png"], ["Å.png", "Å2.png"]])
def test_names_that_differ_in_unicode_s_form_alone_are_named(names: list[str]) -> None:
    """paperbanana#240: macOS writes an accent as a character of its own."""
    composed, decomposed = ([unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD"))
    assert "NFC and NFD" in name_hint(composed, decomposed)
    assert "NFC and NFD" in name_hint(decomposed, [*composed, "b.png"])
    assert name_hint(composed, composed) == name_hint(["a.png"], ["b.png"]) == name_hint([], names) == ""


def test_a_missing_path_that_looks_like_what_is_there_says_so() -> None:
    """unmade/shelf-back#50."""
    Path(unicodedata.normalize("NFD", "données/GT")).mkdir(parents=True)
    Path("IMG_1.PNG").touch()
    assert "NFC and NFD" in missing_hint("données/GT/a.png")
    with pytest.raises(UserError, match="^model données/GT: no such file or folder; .*NFC and NFD"):
        require_paths([Path("données/GT")], "model")
    assert "capital letters" in missing_hint(Path("IMG_1.png").absolute())
    assert missing_hint("sub\\a.png") == "; folders are separated by /"  # a list of Windows
    assert "there without the quotes" in missing_hint('"IMG_1.PNG"'), "nnUNet#1787"
    assert "nothing is ~" in missing_hint("None"), "clearml#1175"
    # ardasnck/learning_to_localize_sound_source#2: a list names .png, or no suffix, and the files are of another.
    assert "differ in the suffix: name them" in missing_hint("IMG_1.jpg")
    assert "differ in the suffix: name them" in missing_hint("IMG_1")
    assert missing_hint("IMG_1.pth") == missing_hint("other/a.png") == ""
    # detectron2#222: weights of a run that its own name, used again, has set aside.
    Path("run_archived_1/models").mkdir(parents=True)
    Path("run_archived_1/models/a.pth").touch()
    assert missing_hint("run/models/a.pth") == "; the earlier run of that name has run_archived_1/models/a.pth"
    # nnUNet#397: a run that was stopped has no net_g_latest.pth.
    for time, name in enumerate(("net_g_9.pth", "net_g_12.pth", "net_d_12.pth")):
        path = Path("stopped/models", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
    for asked in ("stopped", "stopped/models", "stopped/models/net_g_latest.pth"):
        assert missing_hint(asked) == "; the newest network there is stopped/models/net_g_12.pth"
    assert missing_hint("stopped/models/net_d_13.pth") == "; the newest network there is stopped/models/net_d_12.pth"
    # Real-ESRGAN-ncnn-vulkan#8: the same name with another ending.
    Path("own.onnx").touch()
    for asked in ("own.pth.param", "own", "own.bin"):
        assert missing_hint(asked) == "; the newest network there is own.onnx"
    # gaussian-splatting#379: a network was advised, which is no state.
    assert missing_hint("stopped", "state") == ""
    Path("stopped/training_states").mkdir()
    Path("stopped/training_states/9.state").touch()
    for asked in ("stopped", "stopped/training_states", "stopped/training_states/12.state"):
        assert missing_hint(asked, "state") == "; the newest state there is stopped/training_states/9.state"


@pytest.mark.parametrize(
    ("name", "other", "difference"),
    [
        ("IMG_1.PNG", "IMG_1.png", "capital letters"),
        ("IMG_1", "img_1", "capital letters"),
        ("a.png", "a.jpg", "the suffix"),
        ("v1.0", "v1.1", ""),
        ("0001.png", "1.png", "blanks, dashes or leading zeros"),
        ("a b.png", "a%20b.png", "blanks, dashes or leading zeros"),
        ("a-1.png", "a\u20131.png", "blanks, dashes or leading zeros"),
        ("a.png", "a_x4.png", ""),
    ],
)
def test_names_that_look_alike_are_told_what_differs(name: str, other: str, difference: str) -> None:
    """stable-diffusion-webui#14877: suffixes in capitals."""
    hint = name_hint([name, "b.png"], ["b.png", other])
    assert (f"differ in {difference}: " in hint) if difference else not hint


XMP_BEFORE_AND_AFTER = {  # as exiftool writes it; the picture grows 3 times in width and 2 times in height
    "GPano:FullPanoWidthPixels": (24, 72), "GPano:CroppedAreaTopPixels": (5, 10), "GPano:ProjectionType": ("x", "x"),
    "mwg-rs:RegionAppliedToDimensionsW": (24, 72), "mwg-rs:RegionAppliedToDimensionsH": (17, 34),
    "mwg-rs:RegionAreaX": (0.25, 0.25), "mwg-rs:RegionName": ("Ada", "Ada"),
    "xmpTPg:MaxPageSizeW": (8.5, 8.5), "xmpTPg:MaxPageSizeH": (11, 11), "xmpTPg:MaxPageSizeUnit": ("inch", "inch"),
    "tiff:ImageWidth": (24, 72), "exif:ExifImageHeight": (17, 34), "exif:FocalPlaneXResolution": (100, 300),
    "tiff:Make": ("a maker", "a maker"), "crs:CropLeft": (0.1, 0.1), "crs:CropWidth": (3, None),
    "exif:SubjectLocation": (1, None), "MP:RegionRectangle": ("0.1, 0.2, 0.3, 0.4", "0.1, 0.2, 0.3, 0.4"),
    "iptcExt:ImageRegionBoundaryX": (5, None), "iptcExt:ImageRegionBoundaryUnit": ("pixel", None),
}  # fmt: skip
TURNED = ("GPano", "mwg-rs", "crs", "MP")  # places in the picture as it was stored
REGIONS = {"mwg-rs": "mwg-rs:Regions", "MP": "MP:RegionInfo", "iptcExt": "Iptc4xmpExt:ImageRegion"}


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool (libimage-exiftool-perl)")
@pytest.mark.parametrize("orientation", [1, 6])
def test_xmp_fits_the_larger_picture(orientation: int) -> None:
    """immich#24193, osxphotos#633: sizes and regions in XMP that are those of the old picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE if orientation == 1 else SIZE[::-1]).save("in.jpg", exif=exif)
    written = [f"-XMP-{name}={value}" for name, (value, _) in XMP_BEFORE_AND_AFTER.items()]
    subprocess.run(["exiftool", "-q", "-m", "-n", *written, "in.jpg"], check=True)
    before = exiftool(Path("in.jpg"))[0]
    picture, said = read_picture(Path("in.jpg")), list[str]()
    write_picture(replace(picture, colour=picture.colour.repeat(2, 0).repeat(3, 1)), Path("out.jpg"), warn=said.append)
    after = exiftool(Path("out.jpg"))[0]
    for name, (_, expected) in XMP_BEFORE_AND_AFTER.items():
        assert f"XMP-{name}" in before
        prefix = name.partition(":")[0]
        if orientation != 1 and prefix in TURNED:
            expected = None
        result = after.get(f"XMP-{name}")
        result = result[0] if isinstance(result, list) else result
        assert result == expected, name
        if expected is None:
            assert f"XMP's {REGIONS.get(prefix, name)}" in said[0], name


@pytest.mark.parametrize("of_exif", [None, 1, 6])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_an_orientation_of_xmp_alone_turns_nothing(kind: str, of_exif: int | None) -> None:
    """sharp#4585: else programs that read EXIF and those that read XMP show the result in two ways."""
    xmp = b"""<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
        xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>"""
    path, exif = Path(f"in.{kind}"), Image.Exif()
    if of_exif:
        exif[0x0112] = of_exif
    if kind == "tif":
        exif[700] = xmp
    settings: dict[str, Any] = {} if kind in ("tif", "png") else {"xmp": xmp}
    # Pillow turns a TIFF with a palette, and others are turned here.
    Image.new("P" if kind == "tif" else "RGB", SIZE).save(path, exif=exif, **settings)
    if kind == "png":
        path.write_bytes(join(path.read_bytes(), [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)]))
    picture = read_picture(path)
    assert picture.colour.shape[1::-1] == (SIZE[::-1] if of_exif == 6 else SIZE)
    assert read_image(path).shape[:2] == picture.colour.shape[:2]
    write_picture(picture, Path(f"out.{kind}"))
    assert f'tiff:Orientation="{1 if of_exif else 6}"'.encode() in Path(f"out.{kind}").read_bytes()


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize(
    ("primaries", "transfer", "is_named"),
    [(9, 16, True), (12, 16, True), (12, 13, True), (1, 13, False), (2, 2, False)],
)
def test_the_colours_of_an_avif_keep_their_meaning(primaries: int, transfer: int, is_named: bool) -> None:
    """upscayl#1265: Display P3 or PQ of a phone, shown as sRGB, is pale."""
    Image.new("RGB", SIZE).save("in.avif")
    data = Path("in.avif").read_bytes()
    offset = data.index(b"colrnclx") + 8
    Path("in.avif").write_bytes(data[:offset] + bytes([0, primaries, 0, transfer]) + data[offset + 4 :])
    picture, said = read_picture(Path("in.avif")), list[str]()
    write_picture(picture, Path("out.png"), warn=said.append)
    assert (b"cICP" + bytes([primaries, transfer, 0, 1]) in Path("out.png").read_bytes()) == is_named
    write_picture(picture, Path("out.jpg"), warn=said.append)
    assert said == (["dropped: cICP"] if is_named else [])


def test_xmp_of_what_stands_behind_the_picture_is_left_out() -> None:
    """immich#28572: else a viewer looks for a film, a map of gains or further XMP that the result lacks."""
    google = "http://ns.google.com/photos/1.0"
    xmp = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
        <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
        xmlns:GCamera="{google}/camera/" xmlns:Container="{google}/container/" xmlns:Item="{google}/container/item/"
        xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:n="http://ns.adobe.com/xmp/note/"
        xmlns:apple="http://ns.apple.com/HDRGainMap/1.0/" GCamera:MotionPhoto="1" GCamera:BurstID="\u56fe"
        hdrgm:Version="1.0" n:HasExtendedXMP="0123" apple:HDRGainMapVersion="65536"><Container:Directory><rdf:Seq>
        <rdf:li rdf:parseType="Resource"><Container:Item Item:Length="2345" Item:Semantic="MotionPhoto"/></rdf:li>
        </rdf:Seq></Container:Directory><GCamera:MicroVideoOffset>2345</GCamera:MicroVideoOffset>
        </rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".encode()
    result, dropped = corrected(xmp + bytes(3), (4, 4), (8, 8), orientation=0)
    assert dropped == [
        f"XMP's {name}"
        for name in ("GCamera:MotionPhoto", "hdrgm:Version", "n:HasExtendedXMP", "apple:HDRGainMapVersion",
                     "Container:Directory", "GCamera:MicroVideoOffset")
    ]  # fmt: skip
    assert not any(word in result for word in (b"2345", b"0123", b"Semantic", b"MotionPhoto"))
    assert 'GCamera:BurstID="\u56fe"'.encode() in result
    assert result.startswith(b"<?xpacket begin")
    assert corrected(result, (4, 4), (8, 8), orientation=6) == (result, [])


@pytest.mark.parametrize(
    ("marker", "mark", "name"), [(1, b"Exif\0\xff", "APP1 'Exif'"), (13, b"Adobe_CM\0", "APP13 'Adobe_CM'")]
)
def test_a_segment_that_only_begins_like_one_that_is_read_is_named(marker: int, mark: bytes, name: str) -> None:
    """ImageMagick#8926: exiftool reads them, Pillow and OpenCV do not."""
    segment = mark + Image.Exif().tobytes()
    extra = bytes([0xFF, 0xE0 + marker]) + struct.pack(">H", len(segment) + 2) + segment
    Image.new("RGB", (9, 6)).save("in.jpg", extra=extra)
    assert read_picture(Path("in.jpg")).metadata.dropped == (name,)


@pytest.mark.parametrize("has_mask", [True, False])
def test_a_tiff_s_smaller_copies_and_mask_are_no_pages(has_mask: bool) -> None:
    """gdal#1455: a cloud optimised GeoTIFF has both."""
    pixels = noise(random.Random(0), (8, 6, 3))
    with tifffile.TiffWriter("a.tif") as file:
        for step, kind in ((1, 0), (2, 1)):
            file.write(pixels[::step, ::step], photometric="rgb", subfiletype=kind, metadata=None)
            if has_mask:
                mask = np.ones((8 // step, 6 // step), bool)
                file.write(mask, photometric="mask", subfiletype=kind | 4, metadata=None)
    picture = read_picture(Path("a.tif"))
    assert np.array_equal(picture.colour, pixels)
    assert picture.metadata.dropped == (("mask",) if has_mask else ())
    assert np.array_equal(read_image(Path("a.tif"))[..., ::-1], pixels)


def test_the_mark_of_a_raw_photograph_is_left_out_of_a_tiff() -> None:
    """darktable#14126: shops and Photoshop took the result for a DNG."""
    mark = [(50706, 1, 4, bytes([1, 4, 0, 0]), True), (50708, 2, 4, b"Cam\0", True)]
    tifffile.imwrite("a.tif", np.zeros((8, 6, 3), np.uint8), photometric="rgb", metadata=None, extratags=mark)
    said = list[str]()
    write_picture(read_picture(Path("a.tif")), Path("b.tif"), warn=said.append)
    with tifffile.TiffFile("b.tif") as file:
        assert (50706 in file.pages[0].tags, 50708 in file.pages[0].tags) == (False, True)  # type: ignore[union-attr]
    assert said == ["dropped: DNGVersion"]


def test_content_credentials_of_the_old_pixels_are_named() -> None:
    """oxipng#662."""
    image = Image.fromarray(noise(random.Random(0), (8, 6, 3)))
    image.save("a.tif", tiffinfo={52545: b"jumb"})
    image.save("a.webp", exif=Image.Exif().tobytes())
    content = Path("a.webp").read_bytes() + b"C2PA\3\0\0\0abc\0"
    Path("a.webp").write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    for name in ("a.tif", "a.webp"):
        assert read_picture(Path(name)).metadata.dropped == ("C2PA",)


def test_sizes_of_the_old_picture_in_other_places_are_named() -> None:
    """RawTherapee#2787: ImageMagick's texts of EXIF, and a density of the focal plane that is no fraction."""
    texts, old = PngInfo(), ("exif:ExifImageWidth", "exif:PixelYDimension", "exif:FocalPlaneXResolution")
    for keyword in (*old, "exif:FocalLength"):
        texts.add_text(keyword, "8")
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA20E: 300.0, 0xA20F: IFDRational(300)})
    Image.new("RGB", (8, 6)).save("a.png", pnginfo=texts, exif=exif.tobytes())
    picture, said = read_picture(Path("a.png")), list[str]()
    write_picture(replace(picture, colour=picture.colour.repeat(2, 0).repeat(2, 1)), Path("b.png"), warn=said.append)
    assert said == [f"dropped: {', '.join(f'text {name!r}' for name in old)}, FocalPlaneXResolution"]
    with Image.open("b.png") as image:
        assert image.getexif().get_ifd(0x8769) == {0xA20F: 600}
        assert image.text == {"exif:FocalLength": "8"}  # type: ignore[attr-defined]


def test_results_that_are_one_file_where_capitals_do_not_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """owncloud/client#1914: "wrote 2 of 2 images" left one on exFAT; the data commands ended while they wrote."""
    for name in ("in/a.png", "in/A.png"):
        write_noise(name, 4, 4)
    windows = Extraction(Path("in"), Path("sub"), Window(4, 4, 0), (2,), form="png")
    jobs = find_jobs(["in"], Path("out"))[0]
    refuse_unwritable(jobs)
    Path("f").touch()
    with pytest.raises(UserError, match="already exists: f;"):
        make_lr(Path("in"), Path("f"), 2, PrepJob())
    exists = os.path.exists
    monkeypatch.setattr(
        "os.path.exists", lambda path: exists(path) or exists(Path(path).parent / Path(path).name.lower())
    )
    with pytest.raises(UserError, match="out/A.png and .*out/a.png are one file there, where capital letters do not"):
        refuse_unwritable(jobs)
    with pytest.raises(UserError, match="lr/A.png and lr/a.png are one file there"):
        make_lr(Path("in"), Path("lr"), 2, PrepJob())
    with pytest.raises(UserError, match="sub/in_bicubic_X2_sub/A and .*/a are one file there"):
        extract_subimages(windows, PrepJob())


def test_what_stands_behind_a_jpeg_is_named() -> None:
    """immich#28572: the film of a motion photo; Pillow#8036: the further pictures of an MPO."""
    image = Image.fromarray(noise(random.Random(0), (40, 50, 3)))
    for settings in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        image.save("in.jpg", quality=90, **settings)
        plain = Path("in.jpg").read_bytes()
        # libvips#2309: bytes that decoders skip are not the end.
        for content in (plain, plain.replace(b"\xff\xda", b"\0\0\xff\xff\xda", 1)):
            for behind, words in ((b"", []), (b"\0" * 9, []), (b"\0\0\0\x18ftypmp42\xff\xd9", ["14 bytes after"])):
                Path("in.jpg").write_bytes(content + behind)
                assert [name.rpartition(" the")[0] for name in read_picture(Path("in.jpg")).metadata.dropped] == words
    image.save("in.webp")
    plain = Path("in.webp").read_bytes()
    for behind, words in ((b"\0" * 9, ()), (b"hello there", ("11 bytes after the picture",))):
        Path("in.webp").write_bytes(plain + behind)
        assert read_picture(Path("in.webp")).metadata.dropped == words
    image.save("in.mpo", save_all=True, append_images=[image])
    dropped = read_picture(Path("in.mpo")).metadata.dropped
    assert any("bytes after the picture" in name for name in dropped)
    assert "APP2 'MPF'" in dropped


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt"])
@pytest.mark.parametrize(
    ("kind", "mark"), [("exif", b""), ("APP1", b""), ("xmp", b""), ("app1", b"http://ns.adobe.com/xap/1.0/\0")]
)
def test_profiles_of_other_programs_in_a_png_fit_the_result(kind: str, mark: bytes, name: bytes) -> None:
    """binaryanalysis-ng#387: ImageMagick and exiftool write EXIF and XMP as texts of hexadecimal digits."""
    exif, is_xmp = Image.Exif(), kind == "xmp" or bool(mark)
    exif[0x0112], exif[0x0100] = 6, 4
    xmp = mark + b"<x xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:ImageWidth='4'/>"
    content = xmp if is_xmp else exif.tobytes()
    text = f"\n{kind}\n{len(content):8}\n{content.hex()}\n".encode()
    value = b"\0" + zlib.compress(text) if name == b"zTXt" else text
    plain = write_noise("plain.png", 3, 4).read_bytes()
    Path("in.png").write_bytes(join(plain, [(name, b"Raw profile type " + kind.encode() + b"\0" + value)]))
    picture = read_picture(Path("in.png"))
    write_picture(replace(picture, colour=picture.colour.repeat(2, 0).repeat(2, 1)), Path("out.jpg"))
    with Image.open("out.jpg") as image:
        if is_xmp:
            assert b'tiff:ImageWidth="8"' in image.info["xmp"]
        else:
            assert (image.size, dict(image.getexif())) == ((8, 6), {0x0100: 8})
    assert np.array_equal(read_image(Path("in.png"))[:, :, ::-1], picture.colour), "the same picture in each command"


def test_the_size_and_shape_of_a_pixel_are_those_of_the_result() -> None:
    """Chromagnon#34: micrometres per pixel of a microscope; OCRmyPDF#83: pixels that are no squares."""

    def enlarged(before: str, after: str) -> str:
        said, picture = list[str](), read_picture(Path(before))
        write_picture(replace(picture, colour=picture.colour.repeat(2, 0).repeat(3, 1)), Path(after), warn=said.append)
        return " ".join(said)

    array = np.zeros((4, 5), np.uint16)
    tifffile.imwrite("imagej.tif", array, imagej=True, resolution=(8, 4), metadata={"unit": "um"})
    assert enlarged("imagej.tif", "out.tif") == ""
    with tifffile.TiffFile("out.tif") as file:
        assert (file.imagej_metadata or {})["unit"] == "um"
        assert [file.pages[0].tags.valueof(code) for code in (282, 283, 296)] == [(24, 1), (8, 1), 1]  # type: ignore[union-attr]
    assert "size or shape of a pixel" in enlarged("imagej.tif", "out.png")
    # Both describe the pixels that were.
    tifffile.imwrite("own.tif", array)
    tifffile.imwrite("of.ome.tif", array, metadata={"PhysicalSizeX": 0.1, "axes": "YX"})
    for name in ("own.tif", "of.ome.tif"):
        assert "ImageDescription of the old pixels" in enlarged(name, "out.tif")
        assert tifffile.imread("out.tif").shape == (8, 15)
    # A file on its side.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 4)).save("side.jpg", dpi=(200, 100), exif=exif)
    tags = [(0x0112, 3, 1, 6, True)]
    tifffile.imwrite("side.tif", array, resolution=(200, 100), resolutionunit=2, extratags=tags, metadata=None)
    assert [read_picture(Path(name)).metadata.density for name in ("side.jpg", "side.tif")] == 2 * [(100, 200)]
    # Per centimetre it stays in whole numbers.
    data = Path("side.jpg").read_bytes()
    Path("cm.jpg").write_bytes(data[:13] + b"\2" + data[14:])
    tifffile.imwrite("cm.tif", array, resolution=(200, 100), resolutionunit=3, extratags=tags, metadata=None)
    for source, kind in itertools.product(("cm.jpg", "cm.tif"), ("jpg", "tif")):
        assert "density" not in enlarged(source, f"out.{kind}")
        with Image.open(f"out.{kind}") as image:
            if kind == "jpg":
                assert (image.info["jfif_unit"], image.info["jfif_density"]) == (2, (100, 200))
            else:
                assert [image.tag_v2[code] for code in (282, 283, 296)] == [100, 200, 3]  # type: ignore[attr-defined]
    # A JPEG has whole numbers only.
    tifffile.imwrite("cm.tif", array, resolution=(118.11, 118.11), resolutionunit=3, metadata=None)
    assert "density" not in enlarged("cm.tif", "out.jpg")
    assert Image.open("out.jpg").info["jfif_density"] == (300, 300)
    Image.new("RGB", (4, 4)).save("square.jpg")
    plain = Path("square.jpg").read_bytes()
    Path("flat.jpg").write_bytes(plain[:13] + b"\0\0\2\0\1" + plain[18:])
    assert enlarged("square.jpg", "out.jpg") == ""
    assert enlarged("flat.jpg", "out.jpg") == "dropped: size or shape of a pixel"


@pytest.mark.skipif(not cv2.haveImageWriter(".avif"), reason="OpenCV without AVIF")
@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_deep_avif_keeps_its_bits_or_says_so(depth: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """image-rs#2232"""
    values = np.linspace(0, 2**depth - 1, 64).astype(np.uint16 if depth > 8 else np.uint8)
    pixels = np.ascontiguousarray(values[None, :, None].repeat(32, 0).repeat(channels, 2))
    settings = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100, cv2.IMWRITE_AVIF_SPEED, 9]
    assert cv2.imwrite("in.avif", pixels, settings)
    picture = read_picture(Path("in.avif"))
    assert picture.colour.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert (picture.alpha is not None) == (channels == 4)
    share = picture.colour[:, :, 1] / np.iinfo(picture.colour.dtype).max
    assert np.abs(share - pixels[:, :, 0] / (2**depth - 1)).max() < 2**-depth * 2
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    picture = read_picture(Path("in.avif"))
    assert picture.colour.dtype == np.uint8
    assert list(picture.metadata.dropped) == ([f"{depth} bits, read as 8"] if depth > 8 else [])


@pytest.mark.parametrize(
    ("version", "kind", "primaries", "said"),
    [
        (124, b"DEBM", 0, ""), (124, b"BGRs", 0, ""), (108, b"BGRs", 0, ""), (108, bytes(4), 0, ""),
        (108, bytes(4), 5, "primaries and gamma"), (124, b"KNIL", 0, "link to a profile"),
    ],
)  # fmt: skip
def test_the_colours_of_a_bmp_keep_their_meaning(version: int, kind: bytes, primaries: int, said: str) -> None:
    """ImageMagick#1475: Pillow ignores the profile of a BMP."""
    header = struct.pack("<IiiHHIIiiII", version, 4, 2, 1, 24, 0, 24, 0, 0, 0, 0) + bytes(16) + kind
    header += struct.pack("<12I", *[primaries] * 12)
    header += struct.pack("<4I", 4, 124 + 24, len(SRGB), 0) if version == 124 else b""
    Path("in.bmp").write_bytes(b"BM" + struct.pack("<III", 0, 0, 14 + version) + header + bytes(range(24)) + SRGB)
    picture, words = read_picture(Path("in.bmp")), list[str]()
    for suffix in ("png", "bmp"):
        write_picture(picture, Path(f"out.{suffix}"), warn=words.append)
    with Image.open("out.png") as image:
        assert (image.info.get("icc_profile") == SRGB) == (kind == b"DEBM")
        assert "dpi" not in image.info
    assert Image.open("out.bmp").info.get("dpi", (0, 0)) == (0, 0), "none is made up"  # none at all since Pillow 13
    in_bmp = ["dropped: ICC profile"] if kind == b"DEBM" else []
    assert words == (2 * [f"dropped: {said}"] if said else in_bmp)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_of_centres", [False, True])
def test_numbers_of_a_tiff_hold_for_the_larger_picture(order: Any, is_of_centres: bool) -> None:
    """geotrellis#2061: places of corners or of centres, RPC, fractions, and GDAL's statistics of the old pixels."""
    text = '<GDALMetadata><Item name="STATISTICS_MEAN" sample="0">3</Item><Item name="SCALE">0.1</Item></GDALMetadata>'
    points, rpc = (2.0, 3.0, 0.0, 500.0, 700.0, 0.0), (*map(float, range(1, 13)), *(1e-9 / n for n in range(1, 81)))
    keys = (1, 1, 0, 1, 1025, 0, 1, 1 + is_of_centres)
    tags = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True), (33922, "d", 6, points, True), (50844, "d", 92, rpc, True),
        (34735, "H", 8, keys, True), (318, "2I", 2, (3127, 10000, 329, 1000), True), (50730, "2i", 1, (-1, 3), True),
        (42112, "s", 0, text, True),
    ]  # fmt: skip
    tifffile.imwrite("a.tif", np.zeros((17, 24), np.uint8), extratags=tags, metadata=None, byteorder=order)
    said, picture = list[str](), read_picture(Path("a.tif"))
    write_picture(replace(picture, colour=picture.colour.repeat(2, 0).repeat(3, 1)), Path("b.tif"), warn=said.append)
    with tifffile.TiffFile("b.tif") as file:
        value = file.pages[0].tags.valueof  # type: ignore[union-attr]
        assert value(33550) == pytest.approx((10 / 3, 10, 0))
        # Where the map's point lies, counted from the corner.
        first = 0.5 * is_of_centres
        assert [value(33922)[0] + first, value(33922)[1] + first] == [3 * (2 + first), 2 * (3 + first)]
        # Line 3 of the old picture is its row 3.5; columns grow thrice, and rows twice.
        assert value(50844) == (1, 2, 6.5, 13, *rpc[4:7], 16, 27, *rpc[9:])
        assert value(318) == (3127, 10000, 329, 1000)
        assert value(50730) == (-1, 3)
        assert value(42112).replace(" ", "") == '<GDALMetadata><Itemname="SCALE">0.1</Item></GDALMetadata>'
    assert said == ["dropped: GDAL's statistics of the old pixels"]
