"""The balancer against its equations in float64, without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses import Balancer

import pytest
import torch
from torch import Tensor, nn

from tests.support.fuzz import draws
from tests.support.networks import images

pytestmark = pytest.mark.usefixtures("device")

SHARES = {"pix": 0.2, "rough": 0.5, "blur": 0.3}


def losses(x: Tensor, gt: Tensor) -> dict[str, Tensor]:
    """Three losses of very different sizes; two share a graph."""
    pooled = nn.functional.avg_pool2d(x - gt, 4)
    return {"pix": (x - gt).abs().mean(), "rough": 1e3 * pooled.square().mean(), "blur": 1e-3 * pooled.abs().sum()}


def pair(seed: int) -> tuple[Tensor, Tensor]:
    return images(16, seed)


def numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def expected_weights(
    history: Mapping[str, list[float]],
    shares: Mapping[str, float],
    reference: str,
    ema: float,
    limit: float,
    eps: float,
) -> dict[str, float]:
    """The weights of the last step from each loss's norms (values) of all steps; those of 0 count in no mean."""
    means = {}
    for name in shares:
        seen = [norm for norm in history[name] if norm]
        decays = [ema ** (len(seen) - 1 - t) for t in range(len(seen))]
        means[name] = sum(map(math.prod, zip(decays, seen, strict=True))) / sum(decays) if seen else 0.0
    # The next loss stands in for a reference that never had a gradient.
    stand_in = next((name for name in (reference, *shares) if means[name] and shares[name]), reference)
    target = means[stand_in] * shares[reference] / shares[stand_in]
    weights = {}
    for name, share in shares.items():
        mu = shares[reference] / share if share else math.inf
        weights[name] = min(limit, target / (mu * means[name] + eps)) if means[name] else 0.0
    weights[reference] = 1.0
    return {name: weights.get(name, 1.0) if history[name][-1] or name not in shares else 0.0 for name in history}


def test_weights_gradient_and_shares_equal_the_equations() -> None:
    """In any run of four steps, of which some losses have no gradient, that is saved and resumed in between."""
    for rng in draws(40):
        by, ema = rng.choice(["gradient", "value"]), rng.choice([0, 0.5, 0.99, 1])
        parts = [rng.choice([0, 1, 2, 5]) for _ in range(2)] + [rng.randint(1, 5)]
        shares = {name: part / sum(parts) for name, part in zip(SHARES, parts, strict=True)}
        limit = rng.choice([None, 10 ** rng.uniform(-2, 2)])
        options = {"ema": ema, "by": by, "max_weight": limit, "reference": rng.choice([None, "pix", "blur"])}
        balancer = Balancer(shares, **options)
        reference = next(n for n in (options["reference"], *SHARES) if n is not None and shares[n])
        never = rng.sample([*SHARES], rng.choice([0, 0, 1, 2, 3]))
        history: dict[str, list[float]] = {name: [] for name in (*SHARES, "free")}
        for step in range(4):
            x, gt = pair(rng.randrange(100))
            factors = {name: 0 if name in never else rng.choice([0, 1, 1, 1, 10]) for name in SHARES}
            given = {name: factors[name] * loss for name, loss in losses(x, gt).items()}
            given["free"] = (x - gt).square().mean()
            gradients = {name: torch.autograd.grad(loss, x, retain_graph=True)[0] for name, loss in given.items()}
            for name, seen in history.items():
                seen.append((gradients[name].norm() if by == "gradient" else given[name]).item())
            eps = 0 if by == "gradient" else 1e-8
            weights = expected_weights(history, shares, reference, ema, limit or math.inf, eps)
            norms = {name: weights[name] * gradient.norm().item() for name, gradient in gradients.items()}
            expected = sum(weights[name] * gradient for name, gradient in gradients.items())

            values = balancer.backward(given, x)
            case = (options, shares, history)
            assert numbers(balancer.weights) == pytest.approx(weights, rel=1e-9), case
            torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-15)
            assert numbers(balancer.shares) == pytest.approx({n: v / sum(norms.values()) for n, v in norms.items()}), (
                case
            )
            assert numbers(values) == numbers(given)
            assert not any(value.requires_grad for value in values.values())
            if step == 1:
                resumed = Balancer(shares, **options)
                resumed.load_state_dict(balancer.state_dict())
                assert torch.equal(resumed.moments, balancer.moments.cpu())
                balancer = resumed


@pytest.mark.parametrize(("by", "factor"), [("gradient", math.nan), ("value", math.nan), ("value", -1)])
def test_a_loss_that_is_not_finite_shows_and_leaves_the_means(by: Any, factor: float) -> None:
    """By value, a negative loss is not finite."""
    balancer = Balancer(SHARES, by=by)
    x, gt = pair(0)
    balancer.backward(losses(x, gt), x)
    before = balancer.state_dict()
    x, gt = pair(1)
    given = losses(x, gt)
    balancer.backward(given | {"blur": factor * given["blur"]}, x)
    assert not x.grad.isfinite().any()
    assert balancer.weights["blur"].isnan()
    assert balancer.weights["rough"].isfinite()
    assert balancer.state_dict()["sums"]["blur"] == before["sums"]["blur"]


def test_losses_that_are_new_to_a_state_start_anew(caplog: pytest.LogCaptureFixture) -> None:
    first, other = Balancer(SHARES, ema=0.5), Balancer({"pix": 0.5, "blur": 0.25, "new": 0.25}, ema=0.5)
    x, gt = pair(0)
    first.backward(losses(x, gt), x)
    other.load_state_dict(first.state_dict())
    assert "the running means of new start anew" in caplog.text
    sums = first.state_dict()["sums"]
    assert other.state_dict()["sums"] == {"pix": sums["pix"], "blur": sums["blur"], "new": 0}
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
