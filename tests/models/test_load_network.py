"""``strict_load_g: false``: what a file leaves random is said, and a file of which nothing fits is refused."""

from __future__ import annotations

import random
from pathlib import Path

import dp_basicsr.models  # noqa: F401
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from tests.support.options import model_options

FILES = 8  # generated


@pytest.fixture(autouse=True)
def seen_by_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_root_logger(), "propagate", True)


def test_any_mixture_of_fitting_and_foreign_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: the tensors themselves. Each file keeps, reshapes, renames or lacks each of the network's tensors."""
    model = build_model(model_options("PSNRModel", tmp_path, perceptual_opt=None))
    start = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    for seed in range(FILES):
        draw, content, fits = random.Random(seed), {}, set()
        for name, value in start.items():
            # The first and the last files are of another network; all others have at least their first tensor.
            how = (
                draw.choice(["keep", "shape", "name", "gone"])
                if 0 < seed < FILES - 1
                else draw.choice(["shape", "name"])
            )
            if how == "keep" or (0 < seed < FILES - 1 and name == "conv_first.weight"):
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
            assert f"{len(fits)} of {len(start)} tensors of RRDBNetDP are loaded" in caplog.text, f"seed {seed}"
        else:
            with pytest.raises(UserError, match=r"does not match.*nothing fits"):
                model.load_network(model.net_g, str(tmp_path / "some.pth"), strict=False)
        for name, value in model.net_g.state_dict().items():
            expected = torch.full_like(value, seed) if name in fits else start[name]
            assert torch.equal(value, expected), f"seed {seed}: {name}"


def test_a_whole_file_is_loaded_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(model_options("PSNRModel", tmp_path, perceptual_opt=None))
    torch.save({"params": model.net_g.state_dict()}, tmp_path / "whole.pth")
    model.load_network(model.net_g, str(tmp_path / "whole.pth"), strict=False)
    assert "random start" not in caplog.text
