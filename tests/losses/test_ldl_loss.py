"""LDL equals BasicSR's where that has a gradient, and has one everywhere."""

from __future__ import annotations

from dp_basicsr.losses.ldl_loss import LDLLoss, artifact_map, ldl_loss

import pytest
import torch
from basicsr.losses.loss_util import get_refined_artifact_map
from torch import Tensor

CASES = 30


def images(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of sr, gt and ema; some images are restored perfectly, flat, black, or perfect up to one value."""
    draw = torch.Generator().manual_seed(seed)
    gt = torch.rand(4, 3, 16, 16, generator=draw, dtype=torch.float64)
    sr, ema = (gt + 0.1 * torch.randn(gt.shape, generator=draw, dtype=torch.float64) for _ in range(2))
    for index, kind in enumerate(torch.randint(0, 6, (4,), generator=draw).tolist()):
        if kind == 0:
            sr[index] = gt[index]
        elif kind == 1:
            sr[index], gt[index] = 0.5, 0.25
        elif kind == 2:
            sr[index] = gt[index] = 0
        elif kind == 3:
            sr[index] = gt[index]
            sr[index, 0, 3, 3] += 1e-12
    return sr, gt, ema


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_has_a_gradient(dtype: torch.dtype) -> None:
    for seed in range(CASES):
        sr, gt, ema = (batch.to(dtype) for batch in images(seed))
        sr.requires_grad_()
        loss = ldl_loss(LDLLoss(), sr, gt, ema)
        loss.backward()
        assert loss.isfinite(), f"seed {seed}"
        assert sr.grad is not None
        assert sr.grad.isfinite().all(), f"seed {seed}"


def test_values_and_gradients_are_those_of_basicsr_where_it_has_them() -> None:
    compared = 0
    for seed in range(CASES):
        sr, gt, ema = images(seed)
        gradients = []
        for weight in (artifact_map, lambda sr, gt, ema: get_refined_artifact_map(gt, sr, ema, 7)):
            leaf = sr.clone().requires_grad_()
            value = weight(leaf, gt, ema)
            torch.testing.assert_close(value, get_refined_artifact_map(gt, sr, ema, 7), rtol=1e-12, atol=0)
            gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
        there = gradients[1].isfinite()
        torch.testing.assert_close(gradients[0][there], gradients[1][there], rtol=1e-9, atol=1e-300)
        compared += int(there.sum())
    assert compared > CASES * 1000
