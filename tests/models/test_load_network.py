"""``strict_load_g: false``: what a file leaves random is said, and a file of which nothing fits is refused."""

from __future__ import annotations

import random
from pathlib import Path

import dp_basicsr.models  # noqa: F401
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.models import build_model
from safetensors.torch import load_file, save_model

from tests.support.networks import swinir
from tests.support.options import model_options

FILES = 8  # generated


def test_any_mixture_of_fitting_and_foreign_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: the tensors themselves. Each file keeps, reshapes, renames or lacks each of the network's tensors."""
    model = build_model(model_options("PSNRModel", tmp_path, perceptual_opt=None))
    start = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    for seed in range(FILES):
        draw, content, fits = random.Random(seed), {}, set()
        # The first and the last files are of another network, the second is whole; all others have the first tensor.
        is_foreign, is_whole = seed in (0, FILES - 1), seed == 1
        for name, value in start.items():
            how = draw.choice(["shape", "name"] if is_foreign else ["keep", "shape", "name", "gone"])
            if is_whole or how == "keep" or (name == "conv_first.weight" and not is_foreign):
                content[name] = torch.full_like(value, seed)
                fits.add(name)
            elif how == "shape":
                content[name] = torch.zeros(2, *value.shape)
            elif how == "name":
                content[f"other.{name}"] = value
        torch.save({"params": content}, tmp_path / "some.pth")
        model.net_g.load_state_dict(start)
        caplog.clear()
        if fits:
            model.load_network(model.net_g, str(tmp_path / "some.pth"), strict=False)
            assert ("random start" in caplog.text) == (len(fits) < len(start))
            assert is_whole or f"{len(fits)} of {len(start)} tensors of RRDBNetDP are loaded" in caplog.text, (
                f"seed {seed}"
            )
        else:
            with pytest.raises(UserError, match=r"does not match.*nothing fits"):
                model.load_network(model.net_g, str(tmp_path / "some.pth"), strict=False)
        for name, value in model.net_g.state_dict().items():
            expected = torch.full_like(value, seed) if name in fits else start[name]
            assert torch.equal(value, expected), f"seed {seed}: {name}"


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_a_test_needs_half_of_the_weights(share: float, tmp_path: Path) -> None:
    """HAT#90 (sibling): a test measured a network of which 1 of 42 tensors was loaded. A training may begin so."""
    options = model_options("PSNRModel", tmp_path, perceptual_opt=None)
    start = build_model(options).net_g.state_dict()
    torch.save(dict(list(start.items())[: round(share * len(start))]), tmp_path / "a.pth")
    for is_train in (True, False):
        model = build_model(options | {"is_train": is_train})
        if is_train or share > 0.5:
            model.load_network(model.net_g, str(tmp_path / "a.pth"), strict=False)
        else:
            with pytest.raises(
                UserError, match=r"\(only \d+ of \d+ tensors fit, even with path: strict_load_g: false\)"
            ):
                model.load_network(model.net_g, str(tmp_path / "a.pth"), strict=False)


def test_buffers_have_no_random_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Masks of attention are computed."""
    model, net = build_model(model_options("PSNRModel", tmp_path, perceptual_opt=None)), swinir()
    torch.save({name: value for name, value in net.state_dict().items() if "attn_mask" not in name}, tmp_path / "a.pth")
    model.load_network(net, str(tmp_path / "a.pth"), strict=False)
    assert "attn_mask" in caplog.text
    assert "random start" not in caplog.text


def test_a_tensor_of_two_names_is_loaded_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """safetensors#265: its ``save_model`` writes the first name alone; torch's files have both."""
    model = build_model(model_options("PSNRModel", tmp_path, perceptual_opt=None))
    model.net_g.again = model.net_g.conv_hr
    save_model(model.net_g, str(tmp_path / "a.safetensors"))
    start = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    torch.nn.init.zeros_(model.net_g.conv_hr.weight)
    model.load_network(model.net_g, str(tmp_path / "a.safetensors"))
    assert len(load_file(tmp_path / "a.safetensors")) == len(start) - 2
    assert read_weights(tmp_path / "a.safetensors").state.keys() == start.keys(), "upscale would take a smaller network"
    assert all(torch.equal(value, start[name]) for name, value in model.net_g.state_dict().items())
    assert "tensors of" not in caplog.text


def test_weights_of_another_scale_get_the_way(tmp_path: Path) -> None:
    """EDSR-PyTorch#8: x4 from the weights of x2."""
    options = model_options("PSNRModel", tmp_path, perceptual_opt=None)
    x2 = build_model(options | {"scale": 2, "network_g": options["network_g"] | {"scale": 2}}).net_g.state_dict()
    torch.save({"params": x2}, tmp_path / "x2.pth")
    for is_train in (True, False):
        model = build_model(options | {"is_train": is_train})
        with pytest.raises(UserError, match="missing: conv_up2.weight") as caught:
            model.load_network(model.net_g, str(tmp_path / "x2.pth"))
        way = f"; a new run with path: strict_load_g: false starts from the {len(x2)} of {len(x2) + 2} tensors that fit"
        assert (way in str(caught.value)) == is_train
        # GFPGAN#65: a test with other numbers than the training's was refused without a way.
        assert str(caught.value).endswith("; network_g of type FromFile is the file's own network")
    # cszn/BSRGAN#50: the scale of the options tells x2 from x3. KAIR#18: the same shapes under other names.
    file = {"network_g": {"type": "FromFile", "path": str(tmp_path / "x2.pth")}}
    assert build_model(options | file | {"scale": 2}).net_g.scale == 2
    shifted = {name.replace("body.", "body.7"): value for name, value in model.net_g.state_dict().items()}
    torch.save(shifted, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has these shapes under other names: docs/finetuning.md shows"):
        model.load_network(model.net_g, str(tmp_path / "other.pth"))
