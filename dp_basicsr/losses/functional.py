"""The mathematics of Dual Perceptual Loss as pure functions (equations of Song et al., arXiv 2201.06383)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Literal["l1", "l2"]

_DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}


def feature_distance(
    x: Mapping[str, Tensor], gt: Mapping[str, Tensor], layer_weights: Mapping[str, float], criterion: Criterion = "l1"
) -> Tensor:
    r"""Compute the layer-weighted distance of two sets of features (Eq. 4 for VGG, Eq. 5 for ResNet).

    .. math:: L = \sum_k \lambda_k \,\mathrm{mean}\,|\phi_k(x) - \phi_k(gt)|

    Args:
        x: Features of the super-resolved image by layer, any shapes.
        gt: Features of the original, the same layers and shapes.
        layer_weights: :math:`\lambda_k` by layer.
        criterion: ``l1``, mean absolute difference, or ``l2``, mean squared difference.

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


def gradient_shares(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    r"""Compute each term's share of the sum of the terms' gradient norms at the image.

    .. math:: s_i = \frac{w_i \lVert g_i \rVert_2}{\sum_j w_j \lVert g_j \rVert_2}, \qquad w_0 = 1

    Args:
        gradients: Gradients of the reference and of each term, before weighting, all of the image's shape.
        weights: Weight of each term, 0-d.

    Returns:
        (n,) shares in [0, 1] that sum to 1; NaN if all gradients are 0.
    """
    # The reference has no weight of its own.
    norms = torch.stack([gradient.norm() for gradient in gradients])
    weighted = torch.stack([torch.ones_like(norms[0]), *(weight.to(norms) for weight in weights)]) * norms
    return weighted / weighted.sum()


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave other types unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
