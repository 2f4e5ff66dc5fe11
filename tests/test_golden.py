"""The first losses of a tiny run, compared with a committed file, so that changes are deliberate.

Updated by ``python -m tests.test_golden``; list such a change in the CHANGELOG under *Numerics*.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401

import pytest
import torch
from basicsr.models import build_model

from tests.support.options import VGG_STYLE_D, model_options, random_batch

GOLDEN = Path(__file__).parent / "golden" / "first_losses.json"
MODELS = ("ESRGANDPModel", "SRGANDPModel")

# Adam's first steps are the signs of the gradients: one near zero that rounds to the other side on another CPU (0.5 %
# in D's logits of iteration 2 were seen between Intel and AMD) moves its weight the other way.
TOLERANCES = (1e-3, 2e-2, 2e-2)


def first_losses(model_type: str, folder: Path) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model = build_model(model_options(model_type, folder) | {"network_d": dict(VGG_STYLE_D)})
    losses = []
    for iteration in (1, 2, 3):
        model.update_learning_rate(iteration)
        model.feed_data(random_batch(iteration, size=128))
        model.optimize_parameters(iteration)
        losses.append(model.get_current_log())
    return losses


@pytest.mark.parametrize("model_type", MODELS)
def test_first_losses(model_type: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[model_type]
    for step, losses in enumerate(first_losses(model_type, tmp_path)):
        assert losses == pytest.approx(expected[step], rel=TOLERANCES[step]), f"iteration {step + 1}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps({name: first_losses(name, Path(folder)) for name in MODELS}, indent=1) + "\n")
