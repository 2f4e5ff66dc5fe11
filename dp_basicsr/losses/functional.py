"""The mathematics of Dual Perceptual Loss as pure functions (equations of Song et al., arXiv 2201.06383)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from dp_basicsr.errors import UserError

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Literal["l1", "l2", "charbonnier", "fro"]

_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "charbonnier": lambda x, gt: ((x - gt).square() + 1e-12).sqrt().mean(),
    # Of the whole batch, as in BasicSR: no mean, and so another loss for another batch size.
    "fro": lambda x, gt: torch.linalg.vector_norm(x - gt),
}
CRITERIA = tuple(_DISTANCES)


def feature_distance(
    x: Mapping[str, Tensor], gt: Mapping[str, Tensor], layer_weights: Mapping[str, float], criterion: Criterion = "l1"
) -> Tensor:
    r"""Compute the layer-weighted distance of two sets of features (Eq. 4 for VGG, Eq. 5 for ResNet).

    .. math:: L = \sum_k \lambda_k \,\mathrm{mean}\,|\phi_k(x) - \phi_k(gt)|

    Args:
        x: Features of the super-resolved image by layer, any shapes.
        gt: Features of the original, the same layers and shapes.
        layer_weights: :math:`\lambda_k` by layer.
        criterion: The distance of two features; see ``DualPerceptualLoss``.

    Returns:
        0-d tensor, >= 0 for weights >= 0; at least float32, also under autocast.
    """
    distance = _DISTANCES[criterion]
    some = next(iter(x.values()))
    # A mean over half a million differences loses digits in half precision.
    with torch.autocast(some.device.type, enabled=False):
        terms = [
            weight * distance(at_least_float32(x[layer]), at_least_float32(gt[layer]))
            for layer, weight in layer_weights.items()
        ]
    return torch.stack(terms).sum()


def dynamic_weight(reference: Tensor, term: Tensor, mu: float, eps: float, max_weight: float | None = None) -> Tensor:
    r"""Compute the weight that keeps a term in proportion to the reference (Eq. 9).

    .. math:: w = \mathcal{D}\left(\frac{L_{ref}}{\mu L_{term} + \epsilon}\right)

    ``mu`` divides: w * term is reference / mu up to eps, so a small mu means a heavy term. Detached: w changes the size
    of the term's gradient, never its direction.

    Args:
        reference: L_VGG, 0-d.
        term: L_Res, 0-d.
        mu: > 0 (paper: 0.5).
        eps: Tiny, only prevents a zero denominator.
        max_weight: Upper limit of the weight (ours; the paper has none).

    Returns:
        0-d tensor without gradient; 0 if both are 0 and eps > 0.
    """
    weight = reference.detach() / (mu * term.detach() + eps)
    return weight if max_weight is None else weight.clamp(max=max_weight)


def weighted_total(reference: Tensor, terms: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    r"""Sum the reference and any number of weighted terms (Eq. 6; Eq. 8, L_VGG + w L_Res, is the case of one)."""
    return reference + sum((w * term for w, term in zip(weights, terms, strict=True)), torch.zeros_like(reference))


def gradient_at(loss: Tensor, x: Tensor, name: str, retain_graph: bool = False) -> Tensor:
    """Return the gradient of a loss at ``x``, without adding it to ``x.grad``.

    Args:
        loss: 0-d.
        x: What it is computed from: a leaf, or the output of a network.
        name: Name of the loss, for the message.
        retain_graph: Keep the graph for a further loss.

    Raises:
        UserError: The loss has no gradient there.
    """
    gradient = None
    if loss.requires_grad:
        gradient = torch.autograd.grad(loss, x, retain_graph=retain_graph, allow_unused=True)[0]
    if gradient is None:
        raise UserError(f"{name}: expected a loss with a gradient, got one without: is it computed under no_grad?")
    return gradient


def gradient_shares(norms: Tensor, weights: Sequence[Tensor]) -> Tensor:
    r"""Compute each term's share of the sum of the terms' weighted gradient norms at the image.

    .. math:: s_i = \frac{w_i \lVert g_i \rVert_2}{\sum_j w_j \lVert g_j \rVert_2}

    Args:
        norms: (n,) norms of the terms' gradients before weighting.
        weights: Weight of each term, 0-d.

    Returns:
        (n,) shares in [0, 1] that sum to 1; 0 if all gradients are 0.
    """
    weighted = torch.stack(list(weights)).to(norms.dtype) * norms
    total = weighted.sum()
    return weighted / total.masked_fill(~(total > 0), 1)  # NaN only where a gradient is


def refuse_range(loss: str, gt: Tensor, range_norm: bool, way: str) -> None:
    """Raise a UserError of the name ``loss`` if ``gt`` is in [0, 255], or without ``range_norm`` in [-1, 1]."""
    # Resizing may leave a little more than 1; images that are not finite are skipped and named by the training step.
    low, high = gt.detach().aminmax()
    expected = "[-1, 1] (range_norm)" if range_norm else "[0, 1]"
    if 2 < high < torch.inf:
        raise UserError(f"{loss}: expected images in {expected}, got values up to {high:g}: divide them by 255")
    if -torch.inf < low < -0.5 and not range_norm:
        raise UserError(f"{loss}: expected images in [0, 1], got values from {low:g}: {way}")


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave other types unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
