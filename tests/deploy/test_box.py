"""The networks in the box: what they are, that every program opens them, and the commands that need no model."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr import inference, webui
from dp_basicsr.archs import CompactDP, load_network
from dp_basicsr.commands.export import main as export
from dp_basicsr.data.imresize import imresize
from dp_basicsr.deploy.choices import BOX, BOX_LIMIT
from dp_basicsr.images.strict import read_image
from dp_basicsr.options import read_options
from dp_basicsr.utils.arguments import NETWORKS

import cv2
import numpy as np
import pytest
import skimage
import torch
from basicsr.metrics import calculate_psnr
from safetensors.torch import load_file

from tests.support.images import noise

ROOT = Path(inference.__file__).resolve().parents[1]
IMAGE = noise(12, 10, 3)


def upscale(folder: str, *arguments: str) -> np.ndarray:
    cv2.imwrite("in.png", IMAGE)
    assert inference.main(["-i", "in.png", "-o", folder, "--device", "cpu", *arguments]) == 0
    return read_image(Path(folder, "in.png")).astype(int)


def output_of(path: Path, image: np.ndarray) -> np.ndarray:
    """What the network makes of (H, W, 3) BGR, computed here."""
    x = torch.from_numpy(image[..., ::-1] / np.float32(255)).permute(2, 0, 1)[None]
    return load_network([path]).module(x)[0].clamp(0, 1).permute(1, 2, 0).mul(255).round().numpy()[..., ::-1]


def test_both_are_fp16_and_together_at_most_3_mb() -> None:
    assert sum(path.stat().st_size for path in BOX) <= 3e6
    for path in BOX:
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}
        assert "Licence of the weights" in path.with_name(f"{path.name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["train_compact_psnr.yml", "train_compact_dp.yml", "train_demo.yml"])
def test_the_option_files_have_their_architecture(file: str) -> None:
    network = read_options(ROOT / "options" / file)["network_g"]
    assert network.pop("type") == "CompactDP"
    net = CompactDP(**network)
    for path in BOX:
        net.load_state_dict(load_file(path))


def test_upscaling_without_a_model_blends_both(capsys: pytest.CaptureFixture[str]) -> None:
    results = [upscale(f"out{share}", "--alpha_interp", share, "--engine", "torch") for share in "01"]
    assert BOX_LIMIT in capsys.readouterr().out.splitlines()[0]
    for path, result in zip(BOX, results, strict=True):
        assert np.abs(result - output_of(path, IMAGE)).max() <= 1
        # waifu2x-ncnn-vulkan#46: whatever the current folder is, also in the page beside models of one's own.
        assert webui.parse(["-m", path.name, "own.pth"]).model_path == [path, Path("own.pth")]
    assert webui.find_models([NETWORKS]).keys() == {path.name for path in BOX}, "the page's"


def test_spandrel_and_ncnn_give_the_same() -> None:
    spandrel, _ = pytest.importorskip("spandrel"), pytest.importorskip("pnnx")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    expected = load_network([BOX[0]]).module(image)
    model = spandrel.ModelLoader().load_from_file(str(BOX[0])).model.float()
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-6)
    assert export(["-o", "box_x4.param", "--alpha_interp", "0"]) == 0, "the networks in the box are the default"
    assert "Licence of the weights: Apache-2.0." in Path("box_x4.md").read_text(encoding="utf-8")
    ncnn, ours = upscale("ncnn", "-m", "box_x4.param"), upscale("torch", "--alpha_interp", "0", "--engine", "torch")
    assert np.abs(ncnn - ours).max() <= 1


def test_the_l1_network_is_better_than_bicubic_on_an_unseen_photograph() -> None:
    photograph = read_image(Path(skimage.__file__).parent / "data" / "chelsea.png")[:192, :256]
    small = imresize(photograph, 1 / 4)
    ours, bicubic = (calculate_psnr(image, photograph, 4) for image in (output_of(BOX[0], small), imresize(small, 4)))
    assert ours > bicubic + 0.5
