"""Non-finite steps are skipped, reported and counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses.terms import PROBE_SHAPE
from dp_basicsr.models import dp_models

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from tests.support.models import build, step
from tests.support.options import SMALL_DP_LOSS, random_batch

pytestmark = pytest.mark.usefixtures("device")

MODELS = ("ESRGANDPModel", "SRGANDPModel", "PSNRModel")
ADAM = {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}
PLAIN = {**ADAM, "foreach": True}  # cannot be fused, and so cannot skip a step on the device


PATHS = ["good.png", "broken.png"]


def bad_step(model: Any, iteration: int) -> None:
    gt = random_batch(0)["gt"]
    gt[1, 0, 5, 5] = math.inf
    step(model, iteration, gt=gt, gt_path=PATHS)


def state(model: Any) -> list[Tensor]:
    """Everything that a step changes: weights, D's statistics, EMA and optimizers."""
    nets = [model.net_g, model.net_g_ema, *([model.net_d] if hasattr(model, "net_d") else [])]
    tensors = [value for net in nets for value in net.state_dict().values()]
    for optimizer in model.optimizers:
        tensors += [value for entry in optimizer.state.values() for value in entry.values() if value is not None]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize(("bad", "optim"), [("image", ADAM), ("gradient", ADAM), ("image", PLAIN)])
@pytest.mark.parametrize("model_type", MODELS)
def test_a_non_finite_step_changes_nothing_and_is_named(
    model_type: str, bad: str, optim: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run with a bad step is bit-identical to one without it."""
    options = {"ema_decay": 0.9, "optim_g": optim, "optim_d": optim}
    model, untouched = (build(model_type, tmp_path, **options) for _ in range(2))
    step(model, 1)
    if bad == "image":
        bad_step(model, 17)
    else:
        hook = model.net_g.conv_first.bias.register_hook(lambda gradient: gradient * math.nan)
        step(model, 17, gt_path=PATHS)
        hook.remove()
    assert not model.step.guard.last_step_applied()
    names = "l_pix" if model_type == "PSNRModel" else "l_g_pix"
    assert f"iteration 17: {names if bad == 'image' else 'a gradient'}" in caplog.text
    assert "broken.png" in caplog.text
    step(model, 2)
    for iteration in (1, 2):
        step(untouched, iteration)
    assert all(map(torch.equal, state(model), state(untouched)))


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_step_that_raises_is_undone_or_says_that_it_is_not(is_lost: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """On a GPU that has failed, what restores the buffers raises as well."""
    model = build("SRGANDPModel", tmp_path, ema_decay=0.9)
    step(model, 1)
    before = state(model)

    def fail(*images: Tensor) -> Tensor:
        if is_lost:
            monkeypatch.setattr(Tensor, "copy_", None)
        raise KeyError("the first error")

    model.cri_pix = fail
    with pytest.raises(KeyError, match="the first error"):
        step(model, 2)
    monkeypatch.undo()
    assert model.step.is_undone != is_lost
    assert is_lost or all(map(torch.equal, state(model), before))
    monkeypatch.setattr(model, "cri_pix", None)
    monkeypatch.setattr(model.step, "apply", fail)
    with pytest.raises(KeyError, match="the first error"):
        step(model, 3)
    assert not model.step.is_undone


def test_too_many_consecutive_non_finite_steps_end_the_run(tmp_path: Path) -> None:
    model = build("PSNRModel", tmp_path, ema_decay=0.9, max_nonfinite=2)
    for iteration in (1, 3, 5):
        bad_step(model, iteration)
        step(model, iteration + 1)
        assert model.step.guard.last_step_applied()
    bad_step(model, 7)
    assert not model.step.guard.last_step_applied()
    model.step.guard.lag = 0  # on a GPU the step itself would not wait for its flag
    with pytest.raises(UserError, match=r"iteration 8: 2 consecutive steps.*max_nonfinite"):
        bad_step(model, 8)


@LOSS_REGISTRY.register()
class FlatLoss(torch.nn.Module):
    """Its gradient is NaN, as that of piq's GMSD on flat images."""

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        is_probe = x.shape == PROBE_SHAPE
        return ((x - gt).square().mean() * is_probe).sqrt()


@pytest.mark.parametrize("shares", [True, False])
def test_a_term_whose_gradient_alone_is_not_finite_can_be_named(shares: bool, tmp_path: Path, caplog: Any) -> None:
    loss = SMALL_DP_LOSS | {"extra_terms": [{"type": "FlatLoss"}], "log_gradient_shares": shares}
    model = build("PSNRModel", tmp_path, max_nonfinite=1, perceptual_opt=loss)
    model.step.guard.lag = 0  # on a GPU a step is looked at two later
    with pytest.raises(UserError, match="max_nonfinite") as raised:
        step(model, 1)
    assert ("dp_share_FlatLoss not finite" in caplog.text) == shares
    assert ("log_gradient_shares=true names" in str(raised.value)) != shares


def test_a_collapsed_discriminator_is_named_once(tmp_path: Path, monkeypatch, caplog) -> None:
    model = build("ESRGANDPModel", tmp_path)
    step(model, 1)
    model.get_current_log()
    assert "collapsed" not in caplog.text
    monkeypatch.setattr(dp_models, "COLLAPSED_LOSS", 10.0)
    for _ in range(2 * dp_models.COLLAPSED_LOGS):
        model.get_current_log()
    assert caplog.text.count("the discriminator has collapsed") == 1


def test_negative_losses_of_a_discriminator_are_no_collapse(tmp_path: Path, caplog: Any) -> None:
    """WGAN's have no least value."""
    model = build("SRGANDPModel", tmp_path, gan_opt={"type": "GANLoss", "gan_type": "wgan", "loss_weight": 0.1})
    step(model, 1)
    model.log_dict |= {"l_d_real": torch.tensor(-5.0), "l_d_fake": torch.tensor(-3.0)}
    for _ in range(2 * dp_models.COLLAPSED_LOGS):
        assert model.get_current_log()["l_d_real"] == -5
    assert "collapsed" not in caplog.text


def test_uint8_images_are_converted_bit_identically_to_basicsr(tmp_path: Path) -> None:
    model = build("PSNRModel", tmp_path)
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    model.feed_data({"lq": values, "gt": values})
    assert model.lq.dtype == torch.float32
    assert (model.lq.cpu().numpy() == values.numpy().astype("float32") / 255.0).all()
