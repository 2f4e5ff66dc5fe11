"""The examples run, and the package opens what they write."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from dp_basicsr.archs import FromFile

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_plain_loop_lowers_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len((EXAMPLES / "train_in_your_own_loop.py").read_text().splitlines()) <= 60
    (tmp_path / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        small = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
        small.resize((128, 144), Image.Resampling.BICUBIC).save(tmp_path / f"photographs/{number}.png")
    small.save(tmp_path / "photographs/small.png")
    torch.manual_seed(0)
    words = "train_in_your_own_loop.py photographs --epochs 3 --weights random"
    monkeypatch.setattr(sys, "argv", words.split())
    runpy.run_path(str(EXAMPLES / "train_in_your_own_loop.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "2 of 3 images have at least 128 pixels a side" in lines
    losses = [float(line.split()[3].rstrip(",")) for line in lines if line.startswith("epoch")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert "l_vgg" in lines[-2]
    assert FromFile("net_g.pth")(torch.rand(1, 3, 8, 9)).shape == (1, 3, 32, 36)
    for folder in ("empty", "missing"):
        Path("empty").mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["train_in_your_own_loop.py", folder])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(EXAMPLES / "train_in_your_own_loop.py"), run_name="__main__")
        assert f"no photograph to train on in {folder}" in capsys.readouterr().err
