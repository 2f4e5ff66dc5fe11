"""Balance losses by what they do to the image: a weight each, from running means of gradient norms or of values."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from dp_basicsr.distributed.collectives import process_count, start_mean
from dp_basicsr.errors import UserError
from dp_basicsr.losses.dual_perceptual_loss import dp_loss_terms
from dp_basicsr.losses.functional import dynamic_weight, gradient_at, gradient_shares

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the sum of the shares


class Balancer:
    r"""Give each loss a share of the gradient at the image, in place of a weight found by trial and error.

    Loss i has the gradient g_i at the image x. With the decay :math:`\beta` (``ema``), step T has

    .. math::
        n_i = \lVert g_i \rVert_2, \quad
        m_i = \frac{\sum_{t \le T} \beta^{T - t} n_{i, t}}{\sum_{t \le T} \beta^{T - t}}, \quad
        w_i = \frac{s_i}{s_r} \frac{m_r}{m_i}, \quad
        G = \sum_i w_i g_i

    The reference r keeps the weight 1, and so does a loss without a share: the scale of G remains that of the
    reference. n_i is taken over all items, channels, pixels and processes, that is of the mini-batch's mean loss. A
    gradient of 0 adds nothing and leaves its mean unchanged.

    ``by="value"`` has the loss's value for n_i, and is Eq. 9 of Song et al. (arXiv 2201.06383) in general:
    :math:`w_i = m_r / (\mu_i m_i + \epsilon)` with :math:`\mu_i = s_r / s_i`.

    The idea is that of EnCodec's balancer (Defossez et al., arXiv 2210.13438; ``audiocraft/losses/balancer.py``), which
    takes the mean of the items' norms and fixes the norm of G instead.

    Args:
        shares: s_i by the loss's name, >= 0, with the sum 1.
        ema: Decay of the running means; 0: this step's norms, 1: the mean of all steps.
        max_weight: Upper limit of the weights w_i, > 0; None: no limit.
        by: Balance the norms of the gradients, or the values.
        reference: Its name; None: the first one with a share.
        eps: Of Eq. 9, with ``by="value"`` alone.

    Attributes:
        weights: w_i of the last call by name, 0-d.
        shares: Each loss's measured share in the sum of the norms of w_i g_i of the last call, by name, 0-d.

    Raises:
        UserError: A value is out of range (a ValueError).
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        ema: float = 0.99,
        max_weight: float | None = None,
        by: Literal["gradient", "value"] = "gradient",
        reference: str | None = None,
        eps: float = 1e-8,
    ) -> None:
        is_distribution = all(share >= 0 for share in shares.values()) and abs(sum(shares.values()) - 1) <= TOLERANCE
        for what, expected, is_right, got in (
            ("shares", "numbers >= 0 with the sum 1", is_distribution, dict(shares)),
            ("ema", "a number from 0 to 1", 0 <= ema <= 1, ema),
            ("max_weight", "a number > 0", max_weight is None or max_weight > 0, max_weight),
            ("by", "gradient or value", by in ("gradient", "value"), by),
        ):
            if not is_right:
                raise UserError(f"balance: {what}: expected {expected}, got {got!r}")
        self.targets = dict(shares)
        self.ema, self.max_weight, self.by = ema, max_weight, by
        self.reference = next(name for name in (reference, *shares) if name is not None and shares.get(name))
        self.eps = eps if by == "value" else 0.0
        # Of each share, the decayed sum of n and the decayed count. They stay on the device, and only change in place.
        self.moments = torch.zeros(2, len(shares), dtype=torch.float64)
        self.weights: dict[str, Tensor] = {}
        self.shares: dict[str, Tensor] = {}

    def backward(self, losses: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Run backward from x with the balanced gradient G of the losses.

        Args:
            losses: 0-d losses by name, which may share a graph; at least those with a share.
            x: The image that they are computed from: a network's output, whose weights then collect the gradient, or a
                leaf, which has it in ``x.grad``.

        Returns:
            The detached values of the losses.

        Raises:
            UserError: A loss with a share is missing, or one has no gradient at x.
        """
        gradients = {name: gradient_at(loss, x, name, retain_graph=True) for name, loss in losses.items()}
        values = {name: loss.detach() for name, loss in losses.items()}
        x.backward(self.combine(values, gradients))
        return values

    def combine(
        self,
        values: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        scale: Tensor | float = 1.0,
        targets: Mapping[str, float] | None = None,
    ) -> Tensor:
        """Return the weighted sum of the gradients, and set ``weights`` and ``shares``. Collective call.

        Args:
            values: Values of the losses by name, 0-d.
            gradients: Their gradients at the image, times ``scale``.
            scale: Factor of the gradients that is not part of their norms, such as that of amp.
            targets: The shares of this call; None: those given. Losses that are not among them have the weight 1.

        Raises:
            UserError: A loss with a share is missing.
        """
        targets = self.targets if targets is None else targets
        if missing := targets.keys() - gradients.keys():
            raise UserError(f"balance: expected the losses {', '.join(targets)}, got none named {', '.join(missing)}")
        # A process's gradient is that of its own mean loss; the mini-batch's is 1 / P of it.
        norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients.values()]) / scale
        local = [norms.square() / process_count(), torch.stack(list(values.values())).double()]
        squares, means = start_mean(torch.stack(local))()
        norms = squares.sqrt()
        measured = dict(zip(gradients, norms if self.by == "gradient" else means, strict=True))
        weights = self._weigh(measured, targets) if targets else {}
        self.weights = {name: weights.get(name, torch.ones_like(norms[0])) for name in gradients}
        self.shares = dict(zip(gradients, gradient_shares(norms, list(self.weights.values())), strict=True))
        weighted = [self.weights[name] * gradient for name, gradient in gradients.items()]
        return sum(weighted[1:], weighted[0])

    def _weigh(self, measured: Mapping[str, Tensor], targets: Mapping[str, float]) -> dict[str, Tensor]:
        """Update the running means, and return the weights of the losses with a share."""
        self.moments = self.moments.to(next(iter(measured.values())).device)
        norms = torch.stack([measured[name] for name in self.targets])
        # A value below 0 would turn the gradient: NaN skips the step on the device, without waiting for it.
        norms = norms.masked_fill(norms < 0, torch.nan)
        counts = (norms > 0) & norms.isfinite()
        new = self.ema * self.moments + torch.stack([norms, torch.ones_like(norms)])
        self.moments.copy_(torch.where(counts, new, self.moments))
        sums, numbers = self.moments
        means = dict(zip(self.targets, sums / numbers.masked_fill(numbers == 0, 1), strict=True))
        mu = {name: targets[self.reference] / share if share else math.inf for name, share in targets.items()}
        # Without any mean of the reference, whose gradient has always been 0, the first of the others stands in.
        reference = means[self.reference]
        for name in (name for name in targets if targets[name]):
            reference = reference.where(reference > 0, mu[name] * means[name])
        weights = {}
        for name, norm in zip(self.targets, norms, strict=True):
            weight = dynamic_weight(reference, means[name], mu[name], self.eps, self.max_weight)
            weight = torch.ones_like(weight) if name == self.reference else weight
            weights[name] = weight.where(norm > 0, norm * 0)  # 0, or NaN if the gradient is
        return weights

    def multiplied(self, name: str, factor: float) -> dict[str, float]:
        """Return the shares with that of one loss times ``factor`` (0 to 1); the others fill the sum."""
        share = self.targets.get(name, 0.0)
        rest = (1 - factor * share) / (1 - share) if share < 1 else 1.0
        return {key: (factor if key == name else rest) * value for key, value in self.targets.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the running means: what they are of, and sum and count by name."""
        sums, counts = (dict(zip(self.targets, row, strict=True)) for row in self.moments.cpu().tolist())
        return {"by": self.by, "sums": sums, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the means of the losses that still have a share; the log names those that start anew."""
        rows = [state["sums"], state["counts"]]
        if not all(math.isfinite(value) and value >= 0 for row in rows for value in row.values()):
            raise UserError("its balance is not that of a run")
        new = [name for name in self.targets if state["by"] != self.by or name not in rows[0]]
        values = [[0.0 if name in new else float(row[name]) for name in self.targets] for row in rows]
        self.moments.copy_(torch.tensor(values, dtype=torch.float64))
        if new:
            logging.getLogger("basicsr").warning(
                f"balance: the running means of {', '.join(new)} start anew, because the checkpoint has none of them"
            )


def build_balancer(train: Mapping[str, Any], is_gan: bool, ramp: int | None = None) -> Balancer:
    """Build the balancer of ``train: balance``; a share that does not fit the losses is a UserError.

    ``is_gan`` says whether the model has ``gan_opt`` and ``ldl_opt``; ``ramp`` is that of ``gan_opt``.
    """
    keys = {"pix": "pixel_opt", "percep": "perceptual_opt"} | ({"gan": "gan_opt", "ldl": "ldl_opt"} if is_gan else {})
    options: dict[str, Mapping[str, Any]] = {name: train[key] for name, key in keys.items() if train.get(key)}
    loss, terms, reference = options.get("percep", {}), {}, None
    if loss.get("type") == "DPLoss":
        weight, reference = loss.get("loss_weight", 1), loss.get("reference", "vgg")
        terms = {t["name"]: {"loss_weight": weight * t.get("loss_weight", 1)} for t in dp_loss_terms(loss)}
    options |= terms
    given = {key: train["balance"][key] for key in ("shares", "ema", "max_weight", "by") if key in train["balance"]}
    balancer = Balancer(**given, reference=reference)
    shares = balancer.targets
    for name in shares:
        if name not in options:
            there = ", ".join(options)
            raise UserError(f"balance: shares: expected losses of the step, got {name!r}; there are: {there}")
        if options[name].get("loss_weight", 1) == 0:
            raise UserError(f"balance: shares: {name}: expected a loss_weight > 0 for a loss with a share, got 0")
    if "percep" in shares and not terms.keys().isdisjoint(shares):
        raise UserError("balance: shares: expected percep or its terms, got both")
    kind = options.get("gan", {}).get("gan_type")
    if balancer.by == "value" and "gan" in shares and kind in ("hinge", "wgan"):
        raise UserError(f"balance: by: expected gradient with a share of gan: a {kind} loss can be negative; got value")
    if ramp and balancer.reference == "gan":
        raise UserError("balance: shares: with gan_opt: ramp, expected another loss than gan first, the reference")
    return balancer
