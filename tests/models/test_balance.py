"""`train: balance` in the models' step, against the equations written out with plain autograd in float64."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support import models
from tests.support.gpu import on_device, skip_if_imitated
from tests.support.models import step
from tests.support.options import SMALL_DP_LOSS, random_batch

pytestmark = pytest.mark.usefixtures("device")

SHARES = {"pix": 0.05, "vgg": 0.45, "resnet": 0.35, "gan": 0.15}
PIX_TERM = {"type": "CharbonnierLoss", "name": "rough", "mu": 2.0}
LDL = {"ldl_opt": {"type": "LDLLoss", "loss_weight": 2.0}, "ema_decay": 0.5}


def build(folder: Path, model_type: str = "SRGANDPModel", double: bool = True, **train: Any) -> Any:
    return models.build(model_type, folder, double, **train)


def measured(model: Any, prefix: str = "share_") -> dict[str, float]:
    log = model.get_current_log()
    return {name.removeprefix(prefix): value for name, value in log.items() if name.startswith(prefix)}


def plain_gradients(model: Any, lq: Tensor, gt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """SR, and the gradient at SR of each loss of Eq. 2 with its loss_weight and without Eq. 9."""
    sr = model.net_g(lq)
    perceptual = model.cri_perceptual.all_terms
    losses = {
        "pix": 1e-2 * (sr - gt).abs().mean(),
        "gan": 5e-3 * -F.logsigmoid(copy.deepcopy(model.net_d)(sr)).mean(),
        "vgg": perceptual["vgg"](sr, gt),
        "resnet": perceptual["resnet"](sr, gt),
    }
    return sr, {name: torch.autograd.grad(loss, sr, retain_graph=True)[0] for name, loss in losses.items()}


@pytest.mark.parametrize(("parts", "ema"), [(1, 0.99), (2, 0), (2, 1)])
def test_the_step_equals_the_equations(parts: int, ema: float, tmp_path: Path) -> None:
    """Three steps; each part of a batch has the weights of all parts so far. With `ema: 0` the shares are met."""
    model = build(tmp_path, balance={"shares": SHARES, "ema": ema}, grad_accumulation=parts)
    history: list[dict[str, float]] = []
    for iteration in (1, 2, 3):
        lq, gt = (on_device(images) for images in random_batch(iteration, torch.float64).values())
        net_g = copy.deepcopy(model.net_g)
        net_g.zero_grad()
        plain = copy.copy(model)
        plain.net_g = net_g
        shares = []
        for part, original in zip(lq.chunk(parts), gt.chunk(parts), strict=True):
            sr, gradients = plain_gradients(plain, part, original)
            history.append({name: gradient.norm().item() for name, gradient in gradients.items()})
            decays = [ema ** (len(history) - 1 - t) for t in range(len(history))]
            means = {
                name: sum(decay * norms[name] for decay, norms in zip(decays, history, strict=True)) / sum(decays)
                for name in SHARES
            }
            weights = {name: share / 0.45 * means["vgg"] / means[name] for name, share in SHARES.items()}
            sr.backward(sum(weights[name] * gradient for name, gradient in gradients.items()) / parts)
            total = sum(weights[name] * history[-1][name] for name in SHARES)
            shares.append({name: weights[name] * history[-1][name] / total for name in SHARES})
        step(model, iteration)
        for ours, expected in zip(model.net_g.parameters(), net_g.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-9, atol=1e-14)
        expected_shares = {name: sum(part[name] for part in shares) / parts for name in SHARES}
        assert measured(model) == pytest.approx(expected_shares, rel=1e-6)
        if ema == 0:
            assert measured(model) == pytest.approx(SHARES, abs=1e-6)


def test_by_value_with_the_terms_alone_is_equation_9(tmp_path: Path) -> None:
    """The gradients equal those of DPLoss with mu = s_vgg / s_resnet."""
    shares = {"vgg": 1 / 3, "resnet": 2 / 3}
    balanced = build(tmp_path, balance={"by": "value", "ema": 0, "shares": shares})
    plain = build(tmp_path, perceptual_opt={**SMALL_DP_LOSS, "mu": 0.5})
    step(balanced, 1)
    step(plain, 1)
    weight = balanced.step.balancer.weights["resnet"].item()
    assert weight == pytest.approx(plain.cri_perceptual.weight.item(), rel=1e-12)
    for ours, expected in zip(balanced.net_g.parameters(), plain.net_g.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize(
    ("model_type", "shares", "train"),
    [
        ("ESRGANDPModel", SHARES, {}),
        ("SRGANDPModel", {"percep": 0.75, "gan": 0.25}, {}),  # Eq. 9 inside, pix without a share
        ("PSNRModel", {"pix": 0.5, "vgg": 0.25, "resnet": 0.25}, {}),
        ("ESRGANDPModel", {"ldl": 0.5, "gan": 0.5}, LDL),
        ("SRGANDPModel", {"rough": 0.5, "gan": 0.5}, {"perceptual_opt": {**SMALL_DP_LOSS, "extra_terms": [PIX_TERM]}}),
        ("PSNRModel", {"pix": 0.5, "percep": 0.5}, {"perceptual_opt": {"type": "L1Loss"}}),
        ("ESRGANDPModel", SHARES, {"grad_accumulation": 2, "checkpointing": True, "channels_last": True}),
    ],
)  # fmt: skip
def test_shares_are_met_in_every_model(
    model_type: str, shares: dict[str, float], train: dict[str, Any], tmp_path: Path
) -> None:
    """Relative to the sum of the shared losses, and the log has weight and share of all losses."""
    model = build(tmp_path, model_type, double=False, balance={"shares": shares, "ema": 0}, **train)
    step(model, 1)
    found = measured(model)
    assert measured(model, "weight_").keys() == found.keys() >= shares.keys()
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    total = sum(found[name] for name in shares)
    assert {name: found[name] / total for name in shares} == pytest.approx(shares, abs=1e-5)
    log = model.get_current_log()
    assert f"{model.log_prefix}percep" in log
    assert ("dp_weight" in log) == ("resnet" not in shares and "vgg_type" in model.opt["train"]["perceptual_opt"])


def test_other_terms_keep_equation_9(tmp_path: Path) -> None:
    """A term without a share has its w relative to the reference, as without `balance`."""
    train = {"perceptual_opt": {**SMALL_DP_LOSS, "extra_terms": [PIX_TERM], "loss_weight": 0.5}}
    model, plain = build(tmp_path, balance={"shares": {"rough": 1.0}}, **train), build(tmp_path, **train)
    step(model, 1)
    step(plain, 1)
    log, expected = model.get_current_log(), plain.get_current_log()
    assert log["dp_weight"] == pytest.approx(expected["dp_weight"], rel=1e-12)
    assert "dp_weight_rough" in expected
    assert "dp_weight_rough" not in log
    assert log["weight_rough"] == 1, "the reference of the balance is its first share"


def test_before_start_iter_the_step_is_that_without_balance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "basicsr")
    model, plain = build(tmp_path, balance={"shares": SHARES, "start_iter": 3}), build(tmp_path)
    assert "Balance by gradient: pix 0.05, vgg 0.45, resnet 0.35, gan 0.15, relative to vgg" in caplog.text
    assert "mu, dynamic_weighting and static_weight are not used" in caplog.text
    for iteration in (1, 2):
        step(model, iteration)
        step(plain, iteration)
        assert {"weight_vgg": 1, "weight_pix": 1}.items() <= model.get_current_log().items()
    for ours, expected in zip(model.net_g.parameters(), plain.net_g.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-15)
    assert not model.step.balancer.moments.any()
    step(model, 3)
    assert measured(model) == pytest.approx(SHARES, rel=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_amp_s_scale_is_not_part_of_the_norms(amp: str, device: torch.device, tmp_path: Path) -> None:
    skip_if_imitated(device, "autocast")
    sums = {}
    for kind in ("none", amp):
        model = build(tmp_path, double=False, amp=kind, balance={"shares": SHARES, "ema": 0})
        step(model, 1)
        while not model.step.guard.last_step_applied():  # fp16's first scale is too large
            step(model, 1)
        sums[kind] = model.step.balancer.state_dict()["sums"]
        assert measured(model) == pytest.approx(SHARES, abs=1e-5)
    assert sums[amp] == pytest.approx(sums["none"], rel=0.1)


@pytest.mark.parametrize("bad", ["image", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_means(bad: str, tmp_path: Path, caplog: Any) -> None:
    model = build(tmp_path, double=False, balance={"shares": SHARES})
    step(model, 1)
    before = model.step.balancer.state_dict()
    gt = random_batch(2)["gt"]
    if bad == "image":
        gt[0, 0, 0, 0] = math.inf
    else:
        model.net_g.conv_first.bias.register_hook(lambda gradient: gradient * math.nan)
    step(model, 2, gt=gt)
    assert not model.step.guard.last_step_applied()
    assert ("l_g_pix" if bad == "image" else "a gradient") in caplog.text
    assert model.step.balancer.state_dict() == before


def test_identical_images_train_without_a_gradient(tmp_path: Path) -> None:
    """A perfect result: all gradients are 0, nothing is divided by 0, and the step counts as finite."""
    model = build(tmp_path, "PSNRModel", double=False, balance={"shares": {"pix": 0.5, "vgg": 0.5}})
    step(model, 1, gt=model.net_g(on_device(random_batch(1)["lq"])).detach().cpu())
    assert model.step.guard.last_step_applied()
    assert not any(measured(model).values())


RAMPED = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5e-3, "ramp": 4}


def test_the_ramp_multiplies_the_share_and_the_others_fill_the_sum(tmp_path: Path) -> None:
    """From G's first update on; while D starts, nothing is balanced."""
    train = {"gan_opt": RAMPED, "net_d_init_iters": 1}
    model = build(tmp_path, balance={"shares": SHARES, "ema": 0}, **train)
    step(model, 1)
    assert measured(model) == {}
    assert not model.step.balancer.moments.any()
    for iteration, factor in ((2, 0.25), (3, 0.5), (4, 0.75), (5, 1), (6, 1)):
        step(model, iteration)
        rest = (1 - factor * 0.15) / 0.85
        expected = {name: share * (factor if name == "gan" else rest) for name, share in SHARES.items()}
        assert measured(model) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model_type", ["ESRGANDPModel", "SRGANDPModel"])
def test_the_ramp_scales_the_adversarial_loss_without_balance(model_type: str, tmp_path: Path) -> None:
    """From the first update of G on; updates, not iterations, count."""
    train: dict[str, Any] = {"net_d_init_iters": 2, "net_d_iters": 2, "pixel_opt": None, "perceptual_opt": None}
    ramped, plain = build(tmp_path, model_type, gan_opt=RAMPED, **train), build(tmp_path, model_type, **train)
    for iteration, factor in ((2, None), (4, 0.25), (8, 0.75), (10, 1), (12, 1)):
        for model in (ramped, plain):
            model.net_g.load_state_dict(plain.net_g.state_dict())
            model.net_d.load_state_dict(plain.net_d.state_dict())
        step(ramped, iteration)
        copied = copy.deepcopy(ramped.net_d.state_dict())
        step(plain, iteration)
        assert all(map(torch.equal, copied.values(), plain.net_d.state_dict().values()))
        if factor is not None:
            loss, expected = (model.log_dict["l_g_gan"].item() for model in (ramped, plain))
            assert loss == pytest.approx(factor * expected, rel=1e-9)


@pytest.mark.parametrize(
    ("model_type", "balance", "train", "message"),
    [
        ("ESRGANDPModel", {"shares": {"pix": 0.5, "lpips": 0.5}}, {}, "lpips.*there are: pix, percep, gan, vgg"),
        ("PSNRModel", {"shares": {"pix": 0.5, "gan": 0.5}}, {}, "gan.*there are: pix, percep, vgg, resnet"),
        ("ESRGANDPModel", {"shares": {"percep": 0.5, "vgg": 0.5}}, {}, "percep or its terms, got both"),
        ("ESRGANDPModel", {"shares": {"pix": 0.5, "gan": 0.4}}, {}, "sum 1"),
        ("ESRGANDPModel", {"by": "value", "shares": {"pix": 0.5, "gan": 0.5}},
         {"gan_opt": {"type": "GANLoss", "gan_type": "hinge"}}, "hinge loss can be negative"),
        ("ESRGANDPModel", {"shares": {"pix": 1.0}}, {"pixel_opt": {"type": "L1Loss", "loss_weight": 0}},
         "pix: expected a loss_weight > 0"),
        ("ESRGANDPModel", {"shares": {"vgg": 1.0}}, {"perceptual_opt": {**SMALL_DP_LOSS, "loss_weight": 0}},
         "vgg: expected a loss_weight > 0"),
        ("ESRGANDPModel", {"shares": {"gan": 0.5, "pix": 0.5}}, {"gan_opt": RAMPED}, "another loss than gan first"),
    ],
)  # fmt: skip
def test_shares_that_do_not_fit_the_losses_are_refused(
    model_type: str, balance: dict[str, Any], train: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, model_type, balance=balance, **train)
