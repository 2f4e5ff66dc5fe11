"""What users of other upscalers reported; docs/reliability.md lists the reports."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr import inference
from dp_basicsr.archs import load_network
from dp_basicsr.deploy.batch import find_jobs
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import MAIN_REGISTRY
from spandrel.architectures.RealCUGAN.__arch.upcunet_v3 import UpCunet2x

from tests.support.images import noise, write_noise
from tests.support.networks import network_file

RGB = noise(20, 31, 3)


@pytest.fixture
def model() -> str:
    return str(network_file("x2.pth", arch="RRDBNet", scale=2, num_grow_ch=4))


def upscale(*arguments: str) -> int:
    """Run the command with torch, whose results do not depend on how a tile is compiled."""
    return inference.main([*arguments, "-o", "out", "--device", "cpu", "--engine", "torch", "--overwrite"])


def test_the_range_of_real_cugan_pro_is_that_of_spandrel() -> None:
    """chaiNNer-org/spandrel#88: the file says so by a number that is no tensor."""
    torch.manual_seed(0)
    state = UpCunet2x(in_channels=3, out_channels=3, pro=False).state_dict()
    image = torch.rand(1, 3, 40, 44)
    results = []
    for content in (dict(state), {**state, "pro": 1}):
        torch.save(content, "cugan.pth")
        opened = load_network([Path("cugan.pth")])
        results.append(opened.module(image).clamp(0, 1))
        torch.testing.assert_close(results[-1], MAIN_REGISTRY.load(dict(content))(image), rtol=0, atol=1e-6)
    assert (results[0] - results[1]).abs().max() > 0.01


def test_home_and_the_name_of_an_image_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder is ever called ``~`` or ``all.png``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_noise("in/a.png", 9, 9)
    (job,) = find_jobs(["in"], Path("~/out"))[0]
    assert job.target == tmp_path / "home/out/a.png"
    with pytest.raises(UserError, match="all.png: expected a folder for several images, got the name of one"):
        find_jobs(["in"], Path("all.png"))
    for name in ("a.gif", "a.mp4", "a.jxl", "A.TGA", "a.jp2"):
        with pytest.raises(UserError, match=f"{name}: expected a folder, or for one image a file that ends in .png"):
            find_jobs(["in/a.png"], Path(name))
    assert find_jobs(["in/a.png"], Path("results.v2"))[0][0].target == Path("results.v2/a.png")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("[2024] x/*.png", ["[1].png", "a.png"]),
        ("[2024] x/[[]1].png", ["[1].png"]),
        ("[2024] x/[[]?].png", ["[1].png"]),
        ("[2024] x/**/*.png", ["[1].png", "a.png", "in/b.png"]),
        ("[2024] x/**.png", ["[1].png", "a.png"]),
        ("[2024] x/**", ["[1].png", "a.png", "in/b.png"]),
        ("[2024] x/*/b.png", ["again/b.png", "in/b.png"]),
        ("[2024] x/.*.png", [".c.png"]),
        ("[0-9] x/*.png", []),
    ],
)
def test_a_glob_takes_existing_names_as_they_are_and_ends(pattern: str, names: list[str]) -> None:
    """oxipng#618, fdir#125: brackets in a folder's name; links to folders above."""
    for name in ("a.png", "[1].png", ".c.png", "in/b.png"):
        write_noise(Path("[2024] x", name), 9, 9)
    for link, target in (("in/loop", ".."), ("self", "."), ("again", "in")):
        Path("[2024] x", link).symlink_to(target)
    if not names:
        with pytest.raises(UserError, match="no such file"):
            find_jobs([pattern], Path("out"))
        return
    jobs, left_out = find_jobs([pattern], Path("out"))
    assert ([str(job.target.relative_to("out")) for job in jobs], left_out) == (names, [])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_png_of_any_kind_becomes_the_same_picture(suffix: str, model: str) -> None:
    """upscayl/upscayl#1169 and #1040, xinntao/Real-ESRGAN#483 and #558: gray, 16 bits, palettes, as PNG and JPEG."""
    smooth = np.linspace(0, 255, 31 * 20).astype(np.uint8).reshape(20, 31)
    gray = Image.fromarray(smooth)
    deep = Image.fromarray(smooth.astype(np.uint16) * 257)
    kinds = {"gray": gray, "gray16": deep, "palette": gray.convert("P"), "colour": gray.convert("RGB")}
    shown = {}
    for name, given in kinds.items():
        given.save(f"{name}.png")
        assert upscale("-i", f"{name}.png", "--model_path", model, "--ext", suffix, "--quality", "100") == 0
        with Image.open(f"out/{name}.{suffix}") as image:
            wide = image.mode.startswith("I")
            shown[name] = np.asarray(image) // 257 if wide else np.asarray(image.convert("L"))
            allowed = ("L", "I;16", "RGB") if name in ("palette", "colour") or suffix == "webp" else ("L", "I;16")
            assert image.mode in allowed
    for name in ("gray16", "palette", "colour"):
        assert np.abs(shown[name].astype(int) - shown["gray"]).max() <= 6, name
