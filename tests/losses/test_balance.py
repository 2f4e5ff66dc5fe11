"""The balancer against its equations in float64, without a model."""

from __future__ import annotations

import math
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses import Balancer
from dp_basicsr.losses.functional import dynamic_weight

import pytest
import torch
from torch import Tensor, nn

from tests.support.gpu import on_device
from tests.support.networks import images, small_loss

pytestmark = pytest.mark.usefixtures("device")

SHARES = {"pix": 0.2, "rough": 0.5, "blur": 0.3}


def losses(x: Tensor, gt: Tensor) -> dict[str, Tensor]:
    """Three losses of very different sizes; two share a graph."""
    pooled = nn.functional.avg_pool2d(x - gt, 4)
    return {"pix": (x - gt).abs().mean(), "rough": 1e3 * pooled.square().mean(), "blur": 1e-3 * pooled.abs().sum()}


def pair(seed: int) -> tuple[Tensor, Tensor]:
    return images(16, seed)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x, retain_graph=True)[0]


@pytest.mark.parametrize("ema", [0, 0.99, 1])
@pytest.mark.parametrize("by", ["gradient", "value"])
def test_weights_and_gradient_equal_the_equations(by: Any, ema: float) -> None:
    """Every step's weights, from the norms (values) of all steps so far."""
    balancer = Balancer(SHARES, ema=ema, by=by, reference="rough")
    history: dict[str, list[float]] = {name: [] for name in SHARES}
    for step in range(4):
        x, gt = pair(step)
        found = losses(x, gt)
        gradients = {name: gradient(loss, x) for name, loss in found.items()}
        means = {}
        for name in SHARES:
            history[name].append((gradients[name].norm() if by == "gradient" else found[name]).item())
            decays = [ema ** (step - t) for t in range(step + 1)]
            means[name] = sum(map(math.prod, zip(decays, history[name], strict=True))) / sum(decays)
        eps = 0 if by == "gradient" else 1e-8
        weights = {
            name: means["rough"] / (SHARES["rough"] / share * means[name] + eps) for name, share in SHARES.items()
        }
        weights["rough"] = 1.0
        expected = sum(weights[name] * gradients[name] for name in SHARES)

        values = balancer.backward(found, x)
        assert {name: weight.item() for name, weight in balancer.weights.items()} == pytest.approx(weights, rel=1e-12)
        torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=0)
        assert {name: value.item() for name, value in values.items()} == {n: loss.item() for n, loss in found.items()}
        assert not any(value.requires_grad for value in values.values())
        if ema == 0 and by == "gradient":
            measured = {name: share.item() for name, share in balancer.shares.items()}
            assert measured == pytest.approx(SHARES, rel=1e-12)


def test_by_value_is_equation_9() -> None:
    """Shares 1 / (1 + 1 / mu) and 1 / (1 + mu) are DPLoss with mu."""
    loss = small_loss(mu=0.25)
    x, gt = images()
    expected = torch.autograd.grad(loss(x, gt)[0], x)[0]
    terms = {name: loss.all_terms[name](x, gt) for name in ("vgg", "resnet")}
    balancer = Balancer({"vgg": 0.2, "resnet": 0.8}, ema=0, by="value")
    balancer.backward(terms, x)
    assert balancer.weights["resnet"].item() == pytest.approx(loss.weight.item(), rel=1e-12)
    assert loss.weight == dynamic_weight(terms["vgg"], terms["resnet"], 0.25, 1e-8)
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-15)


def test_a_network_s_output_passes_the_gradient_on_to_its_weights() -> None:
    torch.manual_seed(0)
    net = on_device(nn.Conv2d(3, 3, 3, padding=1).double())
    lq, gt = pair(0)
    x = net(lq.detach())
    balancer = Balancer(SHARES)
    balancer.backward(losses(x, gt), x)
    x = net(lq.detach())
    total = sum(balancer.weights[name] * loss for name, loss in losses(x, gt).items())
    torch.testing.assert_close(net.weight.grad, torch.autograd.grad(total, net.weight)[0], rtol=1e-9, atol=1e-15)


def test_a_loss_without_a_share_keeps_its_weight_and_is_measured() -> None:
    x, gt = pair(0)
    balancer = Balancer({"pix": 0.5, "blur": 0.5})
    balancer.backward(losses(x, gt), x)
    assert balancer.weights["rough"] == 1
    assert balancer.weights["pix"] == 1
    assert balancer.shares["pix"].item() == pytest.approx(balancer.shares["blur"].item())
    assert sum(share.item() for share in balancer.shares.values()) == pytest.approx(1)


def test_the_limit_bounds_each_weight() -> None:
    x, gt = pair(0)
    free, limited = Balancer(SHARES), Balancer(SHARES, max_weight=2.0)
    for balancer in (free, limited):
        balancer.backward(losses(x, gt), x)
    assert free.weights["blur"] > 2
    assert limited.weights["blur"] == 2


@pytest.mark.parametrize("silent", ["pix", "blur"])
def test_a_zero_gradient_adds_nothing_and_leaves_its_mean(silent: str) -> None:
    """Also that of the reference, pix, whose last mean still sets the scale; the others keep their proportion."""
    balancer = Balancer(SHARES, ema=0)
    x, gt = pair(0)
    balancer.backward(losses(x, gt), x)
    mean = dict(zip(SHARES, balancer.moments[0].tolist(), strict=True))
    x, gt = pair(1)
    found = losses(x, gt)
    balancer.backward(found | {silent: 0 * found[silent]}, x)
    assert x.grad.isfinite().all()
    assert balancer.weights[silent] == 0
    assert balancer.state_dict()["sums"][silent] == mean[silent]
    rest = {name: share for name, share in SHARES.items() if name != silent}
    expected = {name: share / sum(rest.values()) for name, share in rest.items()} | {silent: 0}
    assert {name: share.item() for name, share in balancer.shares.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("silent", [["pix"], ["pix", "rough"], list(SHARES)])
def test_gradients_that_have_always_been_zero(silent: list[str]) -> None:
    """The next loss stands in for a reference that never had a gradient; without any, nothing is added."""
    x, gt = pair(0)
    found = {name: loss * (name not in silent) for name, loss in losses(x, gt).items()}
    balancer = Balancer(SHARES)
    balancer.backward(found, x)
    assert x.grad.isfinite().all()
    measured = {name: share.item() for name, share in balancer.shares.items()}
    loud = sum(share for name, share in SHARES.items() if name not in silent)
    assert measured == pytest.approx({name: 0 if name in silent else SHARES[name] / loud for name in SHARES})


@pytest.mark.parametrize("by", ["gradient", "value"])
def test_a_loss_that_is_not_finite_shows_and_leaves_the_means(by: Any) -> None:
    balancer = Balancer(SHARES, by=by)
    for seed in (0, 1):
        x, gt = pair(seed)
        found = losses(x, gt)
        before = balancer.state_dict()
        balancer.backward(found if seed == 0 else found | {"blur": math.nan * found["blur"]}, x)
    assert not x.grad.isfinite().any()
    assert balancer.weights["blur"].isnan()
    assert balancer.weights["rough"].isfinite()
    assert balancer.state_dict()["sums"]["blur"] == before["sums"]["blur"]


def test_by_value_a_negative_loss_is_not_finite() -> None:
    x, gt = pair(0)
    balancer = Balancer(SHARES, by="value")
    balancer.backward(losses(x, gt) | {"blur": -(x - gt).abs().mean()}, x)
    assert balancer.weights["blur"].isnan()


def test_its_state_continues_it_and_new_losses_start_anew(caplog: pytest.LogCaptureFixture) -> None:
    first, other = Balancer(SHARES, ema=0.5), Balancer({"pix": 0.5, "blur": 0.25, "new": 0.25}, ema=0.5)
    resumed = Balancer(SHARES, ema=0.5)
    for seed in range(3):
        x, gt = pair(seed)
        first.backward(losses(x, gt), x)
    for balancer in (resumed, other):
        balancer.load_state_dict(first.state_dict())
    assert torch.equal(resumed.moments, first.moments.cpu())
    assert "the running means of new start anew" in caplog.text
    sums = other.state_dict()["sums"]
    assert sums == {"pix": first.state_dict()["sums"]["pix"], "blur": first.state_dict()["sums"]["blur"], "new": 0}
    Balancer(SHARES, by="value").load_state_dict(first.state_dict())
    assert "the running means of pix, rough, blur start anew" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"pix": 0.5, "gan": 0.4}}, "sum 1.*0.4"),
        ({"shares": {"pix": 1.5, "gan": -0.5}}, ">= 0.*-0.5"),
        ({"shares": {}}, "sum 1"),
        ({"shares": {"pix": math.nan}}, "sum 1"),
        ({"ema": 1.5}, "ema.*0 to 1.*1.5"),
        ({"max_weight": 0}, "max_weight.*> 0"),
        ({"by": "norm"}, "by.*gradient or value.*norm"),
    ],
)
def test_wrong_values_name_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"balance: .*{message}"):
        Balancer(**{"shares": SHARES, **options})


def test_losses_that_cannot_be_balanced_are_named() -> None:
    x, gt = pair(0)
    with pytest.raises(UserError, match="losses pix, rough, blur.*blur"):
        Balancer(SHARES).backward({name: loss for name, loss in losses(x, gt).items() if name != "blur"}, x)
    for without in ((x.detach() - gt).abs().mean(), gt.requires_grad_().mean()):
        with pytest.raises(UserError, match="blur: expected a loss with a gradient"):
            Balancer(SHARES).backward(losses(x, gt) | {"blur": without}, x)
