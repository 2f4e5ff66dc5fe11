"""The upscaling command: what is read, what is written, what is said, and the exit codes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

from dp_basicsr import inference
from dp_basicsr.deploy import run as run_module
from dp_basicsr.images.files import BadImageError

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from tests.support.gpu import current_device, skip_if_imitated
from tests.support.images import noise, write_noise
from tests.support.networks import make_network, network_file
from tests.support.programs import ROOT, code_of

pytestmark = pytest.mark.usefixtures("device")
PHOTOS = Path("photos")


@pytest.fixture(autouse=True)
def model_and_photos() -> None:
    """``model.pth``, and ``photos``: a tree of small images, a text file, and hidden ones."""
    torch.save({"params_ema": make_network().state_dict()}, "model.pth")
    for name in ("a.png", "b.jpg", "in/c.webp", "in/deep/d.tif", ".hidden.png", ".ipynb_checkpoints/a.png"):
        write_noise(PHOTOS / name, 6, 8)
    (PHOTOS / "notes.txt").write_text("no image")


def run(*arguments: object) -> int:
    """Run the command here: by default, the photographs with the model on the test's device, into ``out``."""
    defaults = {"-i": "photos", "-o": "out", "--model_path": "model.pth", "--device": current_device()}
    missing = [word for name, value in defaults.items() if name not in arguments for word in (name, value)]
    return code_of(inference.main, ["--engine", "torch", *arguments, *missing])


def files(folder: str | Path = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_as_a_file_from_anywhere_it_equals_the_network(device: torch.device) -> None:
    skip_if_imitated(device, "a process of its own")
    image = noise(9, 7, 3)
    cv2.imwrite("in.png", image[:, :, ::-1])
    command = [
        sys.executable,
        ROOT / "dp_basicsr/inference.py",
        "-i",
        "in.png",
        "-o",
        "out",
        "--model_path",
        "model.pth",
    ]
    command += ["--engine", "torch", "--device", str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"model.pth: RRDBNetDP x4 (2 blocks, 8 features, growth 32), EMA weights (params_ema), on {device}, fp32\n"
        "wrote 1 of 1 images to out\n"
    )
    with torch.no_grad():
        expected = make_network()(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])[0]
    expected = expected.clamp(0, 1).permute(1, 2, 0).mul(255).round().numpy()
    result = np.asarray(Image.open("out/in.png"))
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert (result == expected).mean() > 0.99


def test_a_folder_is_mirrored() -> None:
    assert run() == 0
    assert files() == ["a.png", "b.jpg"]
    assert run("--recursive", "--suffix", "_x4") == 0
    assert files() == ["a.png", "a_x4.png", "b.jpg", "b_x4.jpg", "in/c_x4.webp", "in/deep/d_x4.tif"]
    assert Image.open("out/in/deep/d_x4.tif").size == (32, 24)
    assert run("-i", "photos/**/*.*", "-o", "globbed", "--ext", "png") == 0
    assert files("globbed") == ["a.png", "b.png", "in/c.png", "in/deep/d.png"]
    # Beside the folder, which lies within the output then.
    assert run("-o", ".") == 0
    assert Path("b.jpg").is_file()


def test_results_among_the_inputs_are_no_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    """upscayl#585: a batch in its own folder was refused at its second start."""
    for number in (2, 0):
        assert run("-o", "photos", "--suffix", "_x4") == 0
        assert f"wrote {number} of 2 images to photos, " in capsys.readouterr().out
    assert run("-o", "photos", "--suffix", "_x4", "--overwrite") == 2, "one of them may be an original"
    assert {"a.png", "a_x4.png", "b_x4.jpg"} < set(files("photos"))
    assert "a_x4_x4.png" not in files("photos")


def test_several_inputs_are_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell expands ``photos/*``; what is named twice is upscaled once."""
    assert run("-i", "photos/a.png", "photos/in", PHOTOS) == 0
    assert files() == ["a.png", "b.jpg", "c.webp"]
    assert run("-i", "photos/a.png", "photos//a.png", str(PHOTOS.absolute() / "a.png"), "-o", "one.png") == 0
    for inputs in (("photos/a.png", "photos/b.jpg"), ("photos/in", "photos/a.png")):
        assert run("-i", *inputs, "-o", "x.jpg") == 2
        assert "x.jpg: expected a folder for several images, got the name of one; --ext jpg" in capsys.readouterr().err
    # Of one image --ext was ignored, also where a refusal of its transparency had advised it.
    assert run("-i", "photos/a.png", "-o", "x.jpg", "--ext", "png") == 2
    assert "x.jpg and --ext png: expected one format, got two" in capsys.readouterr().err
    assert run("-i", "photos/a.png", "-o", "x.jpg", "--ext", "jpeg") == 0


def test_every_readable_suffix_is_used_and_the_rest_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("g.gif", "GIF"), ("j.jfif", "JPEG"), ("k.JPE", "JPEG"), ("p.apng", "PNG")):
        write_noise(PHOTOS / name, 6, 8, format=kind)
    (PHOTOS / "phone.heic").touch()
    assert run() == 0
    assert files() == ["a.png", "b.jpg", "g.png", "j.jfif", "k.JPE", "p.png"]
    summary = "wrote 6 of 6 images to out, left out 2 files (1 .txt, 1 .heic) and 1 folder (--recursive includes it)"
    assert summary in capsys.readouterr().out
    assert run("-i", "photos/*.[gj]*", "-o", "globbed") == 0
    assert files("globbed") == ["b.jpg", "g.png", "j.jfif"]
    assert "left out" not in capsys.readouterr().out


def test_output_inside_the_input_is_ignored() -> None:
    for _ in range(2):
        assert run("-o", "photos/out", "--recursive") == 0
    assert files("photos/out") == ["a.png", "b.jpg", "in/c.webp", "in/deep/d.tif"]


def test_existing_results_are_kept_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    assert run() == 0
    assert "wrote 1 of 2 images to out, kept 1 that were there (--overwrite replaces them)" in capsys.readouterr().out
    assert Path("out/a.png").read_bytes() == b"mine"
    assert run("--model_path", "none.pth") == 2, "a wrong argument is found all the same"
    assert "model none.pth: no such file" in capsys.readouterr().err
    assert run("--overwrite") == 0
    assert Image.open("out/a.png").size == (32, 24)


@pytest.mark.parametrize(("option", "ending"), [((), "; finished images stay"), (("--overwrite",), "removed\n")])
def test_what_a_stopped_command_leaves_is_told(
    option: tuple[str, ...], ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "upscale_all", Mock(side_effect=KeyboardInterrupt))
    assert run(*option) == 130
    assert ending in capsys.readouterr().err


def test_a_failed_image_is_named_and_the_rest_continues(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """upscayl/upscayl#204 and #604; and #1199, a hidden file of macOS."""
    (PHOTOS / "._b.jpg").write_bytes(b"\0\5\x16\7")
    (PHOTOS / "a.png").write_bytes((PHOTOS / "a.png").read_bytes()[:60])
    write_noise(PHOTOS / "c.png", 4, 4, 4)
    assert run("--ext", "jpg") == 1
    out, err = capsys.readouterr()
    assert files() == ["b.jpg"]
    left_out = "left out 1 file (1 .txt) and 1 folder (--recursive includes it)"
    assert f"wrote 1 of 3 images to out, {left_out}, 2 FAILED, named above" in out
    assert "failed: photos/a.png cannot be read (" in err
    assert "failed: photos/c.png has transparency, which JPEG cannot keep: give --ext png or --alpha drop" in err
    assert "Traceback" not in err

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(run_module, "write_picture", fail)
    assert run("-o", "again") == 1
    assert "failed: photos/b.jpg ZeroDivisionError: by chance" in capsys.readouterr().err


def test_files_beside_a_picture_that_give_its_place_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """MerginMaps/qgis-plugin#371, RawTherapee#1832: what a.tfw or a.xmp says of a.tif was lost without a word."""
    for name in ("a.pgw", "a.png.aux.xml", "a.PNGW", "a.xmp", "a.png.xmp"):
        Path("photos", name).touch()
    assert run("-i", "photos/a.png") == 0
    said = capsys.readouterr().err
    assert "photos/a.png: a.pgw is of the smaller picture" in said
    assert "photos/a.png: a.png.aux.xml is of the smaller picture" in said
    assert "photos/a.png: a.PNGW is of the smaller picture" in said
    assert "photos/a.png: a.xmp is of the smaller picture" in said
    assert "photos/a.png: a.png.xmp is of the smaller picture" in said
    # CodeFormer#64: the result of a file without a suffix was written, and reported as failed.
    Path("photos/a.png").rename("photos/a")
    assert run("-i", "photos/a", "-o", "again") == 0


def test_an_image_waits_for_the_memory_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, started, refused = run_module.write_picture, Event(), Event()

    def refuse(*_: object) -> None:
        if started.is_set() and not Path("out/a.png").exists():
            refused.set()
            raise BadImageError("too little memory")
        started.set()

    def write(*arguments: Any) -> None:
        refused.wait(5)
        kept(*arguments)

    monkeypatch.setattr(run_module, "refuse_without_memory", refuse)
    monkeypatch.setattr(run_module, "write_picture", write)
    assert (run(), files()) == (0, ["a.png", "b.jpg"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nothing"], "input nothing: no such file"),
        (["-i", "nothing.png", "-o", "a.png"], "input nothing.png: no such file"),
        (["-i", "-"], "-: expected a file or folder; save what comes through a pipe"),
        (["-i", "pipe", "-o", "a.png"], "pipe: expected a file or folder; save"),
        (["-i", "photos/a.png", "-o", "-"], "-: expected a file or folder; .*, and name the result"),
        (["-o", "notes/out"], r"notes/out/a.png cannot be written \(Not a directory\): choose another output"),
        (["-i", "photos/in/deep/*.png"], "no such file"),
        (
            ["-i", "photos/frame_%05d.png"],
            r"no such file; give their folder, or a glob in quotes: 'photos/frame_\*.png'",
        ),
        (["-i", "photos/*.txt"], r"no image in photos/\*.txt: expected .* .png, .*; left out 1 file \(1 .txt\)"),
        (["-i", "films"], r"no image in films: .* \(1 .mp4\); take the images of a video with `ffmpeg -i VIDEO"),
        (["-i", "empty"], "no image in empty: expected files that end in .png"),
        (["-i", "upper"], r"no image in upper: .* .apng, .avif; left out 1 folder \(--recursive includes it\)"),
        (["-i", "https://example.org/a.png"], "a.png: no such file; download it first"),
        (["-o", "photos"], "photos/a.png is an input and would be replaced: give --suffix"),
        (["-i", "photos/a.png", "-o", "photos/a.png"], "is an input and would be replaced"),
        (["-o", "link", "--overwrite"], "link/a.png is an input and would be replaced"),
        (["-i", "twins", "--ext", "png"], "twins/a.jpg, twins/a.png would all become out/a.png"),
        (["--ext", "gif"], "--ext gif: expected auto or one of png, jpg"),
        (["--tile", "big"], "--tile: expected auto or a number of pixels"),
        (["--outscale", "0"], "--outscale above 0"),
        (["--quality", "101"], "--quality from 1 to 100"),
        (["--alpha_interp", "0.5"], "--alpha_interp needs two models"),
        (["--device", "cuda:77"], "--device cuda:77: not there"),
        (
            ["--model_path", "none.pth"],
            "it is the path of a file, not the name of a published model: download it first",
        ),
        (["--alpha", "keep"], "invalid choice: 'keep'"),
    ],
)
def test_wrong_usage_is_exit_code_two_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "films", "twins", "upper/lower"):
        Path(name).mkdir(parents=True)
    Path("films/1.mp4").touch()
    for name in ("a.png", "a.jpg"):
        shutil.copy("photos/a.png", Path("twins", name))
    Path("link").symlink_to("photos")
    Path("notes").touch()
    os.mkfifo("pipe")
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_outscale_sets_the_size() -> None:
    write_noise("in.png", 5, 11)
    for outscale in (0.5, 2, 3.3, 4, 6):
        assert run("-i", "in.png", "-o", "x.webp", "--outscale", outscale, "--overwrite") == 0
        assert Image.open("x.webp").size == (round(11 * outscale), round(5 * outscale))


def test_gray_palette_and_16_bit_results_have_the_kind_of_the_input() -> None:
    gray = Image.open(write_noise("kinds/gray.png", 6, 5, 1))
    gray.convert("1").save("kinds/bilevel.png")
    gray.convert("RGB").save("kinds/gray_in_colour.png")
    Image.open(write_noise("kinds/palette.png", 6, 5)).quantize(6).save("kinds/palette.png")
    cv2.imwrite("kinds/deep.png", noise(6, 5, 3, dtype=np.uint16))
    cv2.imwrite("kinds/deep_gray.tif", noise(6, 5, dtype=np.uint16))
    assert run("-i", "kinds") == 0
    modes = {path.name: Image.open(path).mode for path in Path("out").iterdir()}
    assert modes == {
        "gray.png": "L", "gray_in_colour.png": "RGB", "bilevel.png": "L", "palette.png": "RGB", "deep.png": "RGB",
        "deep_gray.tif": "I;16",
    }  # fmt: skip
    red, green, blue = Image.open("out/gray_in_colour.png").split()  # Real-ESRGAN#285
    assert red == green == blue
    deep = cv2.imread("out/deep.png", cv2.IMREAD_UNCHANGED)
    assert deep is not None
    assert (deep.dtype, deep.shape) == (np.uint16, (24, 20, 3))
    assert len(np.unique(deep)) > 900, "more values than 8 bits have: the network's precision is kept"


@pytest.mark.parametrize(
    ("mode", "arch", "scale"),
    [("model", "RRDBNetDP", 4), ("drop", "RRDBNetDP", 4), ("bicubic", "RRDBNetDP", 4), ("bicubic", "RRDBNet", 2),
     ("bicubic", "MSRResNet", 3)],
)  # fmt: skip
def test_alpha(mode: str, arch: str, scale: int) -> None:
    """xinntao/Real-ESRGAN-ncnn-vulkan#6: at x2 and x3 all was transparent."""
    network_file("model.pth", arch=arch, scale=scale)
    rgba = np.zeros((12, 12, 4), np.uint8)
    rgba[:, :6] = (250, 120, 30, 255)  # opaque on the left; black and transparent on the right
    Image.fromarray(rgba).save("in.png")
    Image.new("RGBA", (5, 5), (9, 200, 9, 77)).save("even.png")
    assert run("-i", "in.png", "even.png", "--alpha", mode) == 0
    result = Image.open("out/in.png")
    assert result.mode == ("RGB" if mode == "drop" else "RGBA")
    pixels = np.asarray(result)
    assert pixels.shape[:2] == (12 * scale, 12 * scale)
    if mode != "drop":  # waifu2x-ncnn-vulkan#149: away from its edge, whatever the network makes of it
        assert (pixels[:, : 4 * scale, 3] == 255).all()
        assert (pixels[:, 8 * scale :, 3] == 0).all()
    if scale == 4 and mode != "drop":
        # The hidden black does not shine through: the columns at the edge are like those far from it.
        assert np.abs(pixels[24, 23, :3].astype(int) - pixels[24, 12, :3]).max() <= 2
        assert Image.open("out/even.png").getchannel("A").getextrema() == (77, 77)


def test_a_channel_of_data_is_no_transparency() -> None:
    """AutoCrispy#13: a normal map whose fourth channel is the gloss, which hides no colour."""
    rgba = noise(12, 12, 4)
    rgba[:, :, 3] = np.arange(12) // 6 * 255
    Image.fromarray(rgba).save("in.png")
    Image.fromarray(rgba[:, :, :3]).save("rgb.png")
    assert run("-i", "in.png", "rgb.png", "--alpha", "data") == 0
    pixels = np.asarray(Image.open("out/in.png"))
    assert np.array_equal(pixels[:, :, :3], np.asarray(Image.open("out/rgb.png")))
    assert pixels.shape == (48, 48, 4)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("written", ["0", "200", "0.0", "2.00000e+002"])
def test_pixels_without_data_stay_so_and_darken_no_others(
    dtype: Any, written: str, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """rasterio#2035: GDAL's mask is a value, which interpolation would mix with the others; as programs write it."""
    pixels, nodata = np.full((12, 12, 3), 199, dtype), int(float(written))
    pixels[:, :6] = nodata
    tag = (42113, "s", 0, written, True)
    tifffile.imwrite("in.tif", pixels, photometric="rgb", extratags=[tag])
    tifffile.imwrite("flat.tif", np.full_like(pixels, 199), photometric="rgb", extratags=[(42113, "s", 0, "nan", True)])
    assert run("-i", "in.tif", "flat.tif", "--ext", suffix[1:]) == 0
    assert "parsing" not in capfd.readouterr().err
    result, flat = (cv2.imread(f"out/{name}{suffix}", cv2.IMREAD_UNCHANGED) for name in ("in", "flat"))
    assert result is not None
    assert flat is not None
    assert (result[:, :24] == nodata).all()
    assert np.array_equal(result[:, 24:], np.where(flat == nodata, nodata ^ 1, flat)[:, 24:])
    assert result.dtype == dtype


def test_tiles_and_interpolation_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_noise("in.png", 70, 50)
    torch.save({"params": {name: value * 1.01 for name, value in make_network().state_dict().items()}}, "other.pth")
    for name, tile in (("whole.png", 0), ("tiled.png", 32)):
        arguments = ["--tile", tile, "--tile_overlap", 16, "--alpha_interp", 0.3]
        assert run("-i", "in.png", "-o", name, "--model_path", "model.pth", "other.pth", *arguments) == 0
    whole, tiled = (np.asarray(Image.open(name)).astype(int) for name in ("whole.png", "tiled.png"))
    assert np.abs(whole - tiled).max() <= 1
    assert capsys.readouterr().err == ""


def test_profile_is_kept_and_orientation_applied() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    write_noise("in.jpg", 6, 9, exif=exif, icc_profile=icc)
    assert run("-i", "in.jpg", "-o", "out.png") == 0
    result = Image.open("out.png")
    assert result.size == (6 * 4, 9 * 4)
    assert result.info["icc_profile"] == icc
    assert result.getexif().get(0x0112) is None


def test_exif_that_cannot_be_kept_is_dropped_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera" * 10_000
    write_noise("in/long.png", 6, 9, exif=exif)
    write_noise("in/cut.webp", 6, 9, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\xff\xff\xff\xff\0\0")
    assert run("-i", "in", "--ext", "jpg") == 0
    err = capsys.readouterr().err
    assert re.search(r"warning: in/long.png: dropped: EXIF of 80,0\d\d bytes \(JPEG holds 64 KB\)\n", err)
    assert "warning: in/cut.webp: dropped: damaged EXIF\n" in err
    assert Image.open("out/long.jpg").size == (24, 36)
    assert len(Image.open("out/long.jpg").getexif()) == 0
    assert Image.open("out/cut.jpg").size == (36, 24)
