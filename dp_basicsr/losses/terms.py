"""The terms of a perceptual loss, and their weighting relative to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dp_basicsr.archs.perceptual_arch import AlwaysEval, FrozenFeatures
from dp_basicsr.errors import UserError
from dp_basicsr.losses.functional import Criterion, dynamic_weight, feature_distance, gradient_at
from dp_basicsr.utils.random_state import same_random_state_after

import torch
from torch import Tensor, nn

PAPER_MU = 0.5  # the best of Table 2

# Images for probing a registered loss: two seeded random patches of the paper's size, and the noise between them.
PROBE_SHAPE, PROBE_NOISE, PROBE_SEED = (2, 3, 128, 128), 0.1, 0


@dataclass(frozen=True)
class WeightRule:
    """Weighting of a term relative to the reference; a value out of range is a UserError."""

    mu: float  # divides the dynamic weight (Eq. 9)
    eps: float  # keeps the denominator of Eq. 9 from being 0; with 0, as released, identical images give NaN
    dynamic_weighting: bool = True  # False: static_weight (Table 7, second row)
    static_weight: float = 1.0
    max_weight: float | None = None  # of the dynamic weight

    def __post_init__(self) -> None:
        for name, minimum, expected in (
            ("mu", math.ulp(0), f"a number > 0 (the paper's is {PAPER_MU}; mu divides w)"),
            ("eps", 0, "a tiny number >= 0"),
            ("static_weight", 0, "a number >= 0"),
            ("max_weight", math.ulp(0), "a number > 0, or ~ for no limit"),
        ):
            value = getattr(self, name)
            is_unlimited = name == "max_weight" and value is None
            if not is_unlimited and (type(value) not in (int, float) or not minimum <= value < math.inf):
                raise UserError(f"{name}: expected {expected}, got {value!r}")

    def weight(self, reference: Tensor, term: Tensor) -> Tensor:
        """Return the weight w of a term from its value and the reference's: 0-d, without gradient."""
        if self.dynamic_weighting:
            return dynamic_weight(reference, term, self.mu, self.eps, self.max_weight)
        return torch.full_like(term, self.static_weight)


class PerceptualTerm(nn.Module):
    """Distance of two images in the feature space of one frozen network (Eq. 4, 5), at the layers with a weight."""

    def __init__(
        self, network: str, features: FrozenFeatures, layer_weights: Mapping[str, float], criterion: Criterion
    ) -> None:
        super().__init__()
        self.network, self.features, self.criterion = network, features, criterion
        self.layer_weights = dict(layer_weights)

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """Return the 0-d distance of ``x`` and ``gt``, both (N, 3, H, W); the gradient flows only to ``x``."""
        # No graph of the original's features: half the memory of the term.
        with torch.no_grad():
            gt_features = self.features(gt)
        return feature_distance(self.features(x), gt_features, self.layer_weights, self.criterion)


class RegisteredTerm(AlwaysEval):
    """A loss of BasicSR's LOSS_REGISTRY as a term.

    It is built and probed without changing the global random state, frozen, kept in eval mode, and computed in at
    least float32 under autocast.

    Args:
        kind: Name in the registry; BasicSR's suffix rule applies.
        options: Options of the loss.
        range_norm: Images are in [-1, 1]; the loss gets them in [0, 1].

    Raises:
        UserError: A name or option is unknown, or the loss is not a distance: not callable as ``loss(x, gt)``,
            below 0, higher for identical images (a similarity), or without a gradient.
    """

    parts: Mapping[str, Tensor]  # of a loss that returns a dict, the last call's by name, which begins with "_"

    def __init__(self, kind: str, options: Mapping[str, Any], range_norm: bool = False) -> None:
        from basicsr.utils.registry import LOSS_REGISTRY  # the plain loss runs without BasicSR

        super().__init__()
        self.kind = kind
        self.range_norm = range_norm
        with same_random_state_after():
            torch.manual_seed(PROBE_SEED)  # random projections of a loss must be the same in a resumed run
            try:
                self.loss = LOSS_REGISTRY.get(kind)(**options)
            except UserError:
                raise
            except Exception as error:  # another package's class may raise anything
                raise UserError(f"extra_terms: {kind}: {error}") from error
            self.loss.requires_grad_(False).eval()
            # Probe it with a pair of noisy images and a pair of identical ones.
            gt = torch.rand(PROBE_SHAPE, generator=torch.Generator().manual_seed(PROBE_SEED))
            noise = torch.randn(PROBE_SHAPE, generator=torch.Generator().manual_seed(PROBE_SEED + 1))
            x = (gt + PROBE_NOISE * noise).clamp(0, 1).requires_grad_()
            self.clamps = False
            try:
                apart, same = self._call(x, gt), self._call(gt, gt).item()
            except Exception as error:
                text = f"extra_terms: {kind} cannot be computed as loss(x, gt) on images {PROBE_SHAPE} in [0, 1]"
                raise UserError(f"{text}: {error}") from error
            try:
                self._call(gt + 1, gt)
            except Exception:
                # Such as piq's, which refuse what a network makes beyond [0, 1].
                self.clamps = True
        if min(apart.item(), same) < 0 or same > apart.item():
            what = "" if min(apart.item(), same) < 0 else "a similarity: "
            raise UserError(
                f"extra_terms: {kind}: expected a loss that is 0 or more and lowest for identical images, got {what}"
                f"{apart.item():g} for noisy and {same:g} for identical ones"
            )
        gradient_at(apart, x, f"extra_terms: {kind}")

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """Return the 0-d value for ``x`` and ``gt``, (N, 3, H, W); NaN if it is negative, which skips the step."""
        if self.range_norm:
            x, gt = (x + 1) / 2, (gt + 1) / 2
        value = self._call(x, gt.detach())
        # A negative distance would turn w, and with it the direction of the gradient; NaN skips the step on the device.
        return value.masked_fill(value < 0, torch.nan)

    def _call(self, x: Tensor, gt: Tensor) -> Tensor:
        """Return the sum of what the loss returns."""
        if self.clamps:
            x, gt = x.clamp(0, 1), gt.clamp(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            total, parts = sum_of_parts(self.loss(x, gt))
        self.parts = {name: value.detach() for name, value in parts.items() if name.startswith("_")}
        return total


def sum_of_parts(returned: Any, name: str = "") -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of what a loss returned, 0-d, and its parts by their names in the log.

    ``returned`` is a tensor of one element; BasicSR's tuple, a loss and a style loss, which may be None; or a dict.
    ``name`` is the loss's own, and stands before those of a dict's parts.
    """
    if isinstance(returned, Mapping):
        parts = {f"{name}_{part}": value for part, value in returned.items()}
    else:
        values = returned if isinstance(returned, (tuple, list)) else [returned]
        names = [name, "style", *(f"{name}_{number}" for number in range(2, len(values)))]
        parts = dict(zip(names, values, strict=False))
    parts = {part: value.reshape(()) for part, value in parts.items() if value is not None}
    # Without any part the sum is 0, which `gradient_at` refuses by the loss's name.
    total = torch.stack(list(parts.values())).sum() if parts else torch.zeros(())
    return total, {name: total, **parts} if isinstance(returned, Mapping) else parts
