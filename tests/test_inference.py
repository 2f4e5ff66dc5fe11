"""The upscaling command: what is read, what is written, what is said, and the exit codes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from dp_basicsr import inference
from dp_basicsr.deploy import run as run_module

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tests.support.gpu import current_device, skip_if_imitated
from tests.support.networks import make_network

pytestmark = pytest.mark.usefixtures("device")

ROOT = Path(inference.__file__).resolve().parents[1]
RNG = np.random.default_rng(1)


@pytest.fixture
def model() -> str:
    torch.save({"params_ema": make_network().state_dict()}, "model.pth")
    return "model.pth"


@pytest.fixture
def photos() -> Path:
    """A tree of small images, a text file, and a hidden one."""
    for name in ("a.png", "b.jpg", "in/c.webp", "in/deep/d.tif", ".hidden.png"):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)
    Path("photos/notes.txt").write_text("no image")
    return Path("photos")


def run(*arguments: object) -> int:
    """Run the command in this process, on the test's device; returns the exit code."""
    device = [] if "--device" in arguments else ["--device", str(current_device())]
    try:
        return inference.main(["--engine", "torch", *map(str, arguments), *device])
    except SystemExit as end:
        return int(str(end.code))


def files(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_as_a_file_from_anywhere_it_equals_the_network(model: str, device: torch.device, tmp_path: Path) -> None:
    skip_if_imitated(device, "a process of its own")
    image = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    cv2.imwrite("in.png", image[:, :, ::-1])
    command = [sys.executable, str(ROOT / "dp_basicsr" / "inference.py"), "-i", "in.png", "-o", "out"]
    done = subprocess.run(
        [*command, "--model_path", model, "--engine", "torch", "--device", str(device)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"model.pth: RRDBNetDP x4 (2 blocks, 8 features, growth 32), EMA weights (params_ema), on {device}, fp32\n"
        "wrote 1 of 1 images to out\n"
    )
    with torch.no_grad():
        expected = make_network()(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])[0]
    expected = expected.clamp(0, 1).permute(1, 2, 0).mul(255).round().numpy()
    found = cv2.imread("out/in.png")
    assert found is not None
    assert np.abs(found[:, :, ::-1].astype(int) - expected).max() <= 1
    assert (found[:, :, ::-1] == expected).mean() > 0.99


def test_a_folder_is_mirrored(model: str, photos: Path) -> None:
    assert run("-i", photos, "-o", "out", "--model_path", model) == 0
    assert files("out") == ["a.png", "b.jpg"]
    assert run("-i", photos, "-o", "out", "--model_path", model, "--recursive", "--suffix", "_x4") == 0
    assert files("out") == ["a.png", "a_x4.png", "b.jpg", "b_x4.jpg", "in/c_x4.webp", "in/deep/d_x4.tif"]
    assert Image.open("out/in/deep/d_x4.tif").size == (32, 24)
    assert run("-i", "photos/**/*.*", "-o", "globbed", "--model_path", model, "--ext", "png") == 0
    assert files("globbed") == ["a.png", "b.png", "in/c.png", "in/deep/d.png"]


def test_several_inputs_are_one_list(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell expands ``photos/*``; what is named twice is upscaled once."""
    assert run("-i", f"{photos}/a.png", f"{photos}/in", photos, "-o", "out", "-m", model) == 0
    assert files("out") == ["a.png", "b.jpg", "c.webp"]
    assert run("-i", f"{photos}/a.png", f"{photos}/b.jpg", "-o", "x.png", "-m", model) == 2
    assert "would all become x.png" in capsys.readouterr().err


def test_every_readable_suffix_is_used_and_the_rest_is_counted(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = Image.open(photos / "a.png")
    for name, kind in (("g.gif", "GIF"), ("j.jfif", "JPEG"), ("k.JPE", "JPEG"), ("p.apng", "PNG")):
        pixels.save(photos / name, kind)
    (photos / "phone.heic").touch()
    assert run("-i", photos, "-o", "out", "--model_path", model) == 0
    assert files("out") == ["a.png", "b.jpg", "g.png", "j.jfif", "k.JPE", "p.png"]
    summary = "wrote 6 of 6 images to out, left out 2 files (1 .txt, 1 .heic) and 1 folder (--recursive includes it)"
    assert summary in capsys.readouterr().out
    assert run("-i", photos / "*.[gj]*", "-o", "globbed", "--model_path", model) == 0
    assert files("globbed") == ["b.jpg", "g.png", "j.jfif"]
    assert "left out" not in capsys.readouterr().out


def test_output_inside_the_input_is_ignored(model: str, photos: Path) -> None:
    for _ in range(2):
        assert run("-i", photos, "-o", photos / "out", "--model_path", model, "--recursive") == 0
    assert files("photos/out") == ["a.png", "b.jpg", "in/c.webp", "in/deep/d.tif"]


def test_existing_results_are_kept_by_default(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    assert run("-i", photos, "-o", "out", "--model_path", model) == 0
    assert "wrote 1 of 2 images to out, kept 1 that were there (--overwrite replaces them)" in capsys.readouterr().out
    assert Path("out/a.png").read_bytes() == b"mine"
    capsys.readouterr()
    assert run("-i", photos, "-o", "out", "--model_path", "none.pth") == 2, "a wrong argument is found all the same"
    assert "model none.pth: no such file" in capsys.readouterr().err
    assert run("-i", photos, "-o", "out", "--model_path", model, "--overwrite") == 0
    assert Image.open("out/a.png").size == (32, 24)


def test_a_failed_image_is_named_and_the_rest_continues(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:60])
    Image.new("RGBA", (4, 4), (1, 2, 3, 100)).save(photos / "c.png")
    assert run("-i", photos, "-o", "out", "--model_path", model, "--ext", "jpg") == 1
    out, err = capsys.readouterr()
    assert files("out") == ["b.jpg"]
    left_out = "left out 1 file (1 .txt) and 1 folder (--recursive includes it)"
    assert f"wrote 1 of 3 images to out, {left_out}, 2 FAILED, named above" in out
    assert "failed: photos/a.png cannot be read (" in err
    assert "failed: photos/c.png has transparency, which JPEG cannot keep: give --ext png or --alpha drop" in err
    assert "Traceback" not in err


def test_an_unexpected_error_is_reported_with_its_type(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(run_module, "write_picture", fail)
    assert run("-i", photos, "-o", "out", "--model_path", model) == 1
    assert "failed: photos/b.jpg ZeroDivisionError: by chance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nothing"], "input nothing: no such file"),
        (["-i", "photos/in/deep/*.png"], "no such file"),
        (["-i", "photos/*.txt"], r"no image in photos/\*.txt: expected .* .png, .*; left out 1 file \(1 .txt\)"),
        (["-i", "empty"], "no image in empty: expected files that end in .png"),
        (["-i", "upper"], r"no image in upper: .* .apng, .avif; left out 1 folder \(--recursive includes it\)"),
        (["-i", "photos", "-o", "photos"], "photos/a.png is an input and would be replaced: give --suffix"),
        (["-i", "photos/a.png", "-o", "photos/a.png"], "is an input and would be replaced"),
        (["-i", "twins", "--ext", "png"], "twins/a.jpg, twins/a.png would all become results/a.png"),
        (["-i", "photos", "--ext", "gif"], "--ext gif: expected auto or one of png, jpg"),
        (["-i", "photos", "--tile", "big"], "--tile: expected auto or a number of pixels"),
        (["-i", "photos", "--outscale", "0"], "--outscale above 0"),
        (["-i", "photos", "--quality", "101"], "--quality from 1 to 100"),
        (["-i", "photos", "--alpha_interp", "0.5"], "--alpha_interp needs two models"),
        (["-i", "photos", "--device", "cuda:77"], "--device cuda:77: not there"),
        (["-i", "photos", "--model_path", "none.pth"], "model none.pth: no such file"),
        (["-i", "photos", "--alpha", "keep"], "invalid choice: 'keep'"),
    ],
)
def test_wrong_usage_is_exit_code_two_and_one_line(
    arguments: list[str], message: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "twins", "upper/lower"):
        Path(name).mkdir(parents=True)
    for name in ("a.png", "a.jpg"):
        shutil.copy(photos / "a.png", Path("twins", name))
    assert run("--model_path", model, *arguments) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not Path("results").exists()


@pytest.mark.parametrize("outscale", [0.5, 2, 3.3, 4, 6])
def test_outscale_sets_the_size(model: str, outscale: float) -> None:
    Image.fromarray(RNG.integers(0, 256, (5, 11, 3), dtype=np.uint8)).save("in.png")
    assert run("-i", "in.png", "-o", "x.webp", "--model_path", model, "--outscale", outscale) == 0
    assert Image.open("x.webp").size == (round(11 * outscale), round(5 * outscale))


def test_gray_palette_and_16_bit_results_have_the_kind_of_the_input(model: str) -> None:
    Path("kinds").mkdir()
    gray = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
    Image.fromarray(gray).save("kinds/gray.png")
    Image.fromarray(gray).convert("1").save("kinds/bilevel.png")
    Image.fromarray(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)).quantize(6).save("kinds/palette.png")
    cv2.imwrite("kinds/deep.png", RNG.integers(0, 65536, (6, 5, 3), dtype=np.uint16))
    cv2.imwrite("kinds/deep_gray.tif", RNG.integers(0, 65536, (6, 5), dtype=np.uint16))
    assert run("-i", "kinds", "-o", "out", "--model_path", model) == 0
    modes = {path.name: Image.open(path).mode for path in Path("out").iterdir()}
    assert modes == {
        "gray.png": "L", "bilevel.png": "L", "palette.png": "RGB", "deep.png": "RGB", "deep_gray.tif": "I;16",
    }  # fmt: skip
    deep = cv2.imread("out/deep.png", cv2.IMREAD_UNCHANGED)
    assert deep is not None
    assert (deep.dtype, deep.shape) == (np.uint16, (24, 20, 3))
    assert len(np.unique(deep)) > 900, "more values than 8 bits have: the network's precision is kept"


@pytest.mark.parametrize("mode", ["model", "bicubic", "drop"])
def test_alpha(mode: str, model: str) -> None:
    rgba = np.zeros((12, 12, 4), np.uint8)
    rgba[:, :6] = (250, 120, 30, 255)  # opaque on the left; black and transparent on the right
    Image.fromarray(rgba).save("in.png")
    assert run("-i", "in.png", "-o", "out.png", "--model_path", model, "--alpha", mode) == 0
    result = Image.open("out.png")
    assert result.mode == ("RGB" if mode == "drop" else "RGBA")
    pixels = np.asarray(result)
    if mode == "bicubic":
        assert (pixels[:, :16, 3] == 255).all()
        assert (pixels[:, 32:, 3] == 0).all()
    if mode != "drop":  # the hidden black does not shine through: the columns at the edge are like those far from it
        assert np.abs(pixels[24, 23, :3].astype(int) - pixels[24, 12, :3]).max() <= 2


def test_a_uniform_alpha_stays_uniform(model: str) -> None:
    Image.new("RGBA", (5, 5), (9, 200, 9, 77)).save("in.png")
    assert run("-i", "in.png", "-o", "out.png", "--model_path", model) == 0
    assert Image.open("out.png").getchannel("A").getextrema() == (77, 77)


def test_tiles_and_interpolation_from_the_command_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(RNG.integers(0, 256, (70, 50, 3), dtype=np.uint8)).save("in.png")
    torch.save({"params": {name: value * 1.01 for name, value in make_network().state_dict().items()}}, "other.pth")
    for name, tile in (("whole.png", 0), ("tiled.png", 32)):
        arguments = ["--tile", tile, "--tile_overlap", 16, "--alpha_interp", 0.3]
        assert run("-i", "in.png", "-o", name, "--model_path", model, "other.pth", *arguments) == 0
    whole, tiled = (np.asarray(Image.open(name)).astype(int) for name in ("whole.png", "tiled.png"))
    assert np.abs(whole - tiled).max() <= 1
    assert capsys.readouterr().err == ""


def test_profile_is_kept_and_orientation_applied(model: str) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save("in.jpg", exif=exif, icc_profile=icc)
    assert run("-i", "in.jpg", "-o", "out.png", "--model_path", model) == 0
    result = Image.open("out.png")
    assert result.size == (6 * 4, 9 * 4)
    assert result.info["icc_profile"] == icc
    assert result.getexif().get(0x0112) is None


def test_exif_that_cannot_be_kept_is_dropped_with_a_warning(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    exif, pixels = Image.Exif(), Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif[0x0112], exif[0x010F] = 6, "a camera" * 10_000
    Path("in").mkdir()
    pixels.save("in/long.png", exif=exif)
    cut_off = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\xff\xff\xff\xff\0\0"
    pixels.save("in/cut.webp", exif=cut_off)
    assert run("-i", "in", "-o", "out", "--model_path", model, "--ext", "jpg") == 0
    err = capsys.readouterr().err
    assert re.search(r"warning: in/long.png: dropped: EXIF of 80,0\d\d bytes \(JPEG holds 64 KB\)\n", err)
    assert "warning: in/cut.webp: dropped: damaged EXIF\n" in err
    assert Image.open("out/long.jpg").size == (24, 36)
    assert len(Image.open("out/long.jpg").getexif()) == 0
    assert Image.open("out/cut.jpg").size == (36, 24)
