"""Small models of seed 0 on the test's device, and their steps on random batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401

import torch
from basicsr.models import build_model

from tests.support.options import model_options, random_batch


def build(
    model_type: str, folder: Path, double: bool = False, network_g: dict[str, Any] | None = None, **train: Any
) -> Any:
    """Build a model with these options of ``train``; its networks are float64 if ``double``."""
    torch.manual_seed(0)
    opt = model_options(model_type, folder, **copy.deepcopy(train))
    opt["network_g"] = copy.deepcopy(network_g) or opt["network_g"]
    model = build_model(opt)
    if double:
        for name in ("net_g", "net_d", "net_g_ema", "cri_perceptual"):
            if getattr(model, name, None) is not None:
                getattr(model, name).double()
    return model


def step(model: Any, iteration: int, **batch: Any) -> None:
    """Take one step, on the random batch of the iteration or on what ``batch`` has in its place."""
    dtype = next(model.net_g.parameters()).dtype
    model.feed_data(random_batch(iteration, dtype) | batch)
    model.optimize_parameters(iteration)


def train(model: Any, last: int = 4) -> Any:
    """Take the first steps of a run, with its schedule; return the model."""
    for iteration in range(1, last + 1):
        model.update_learning_rate(iteration)
        step(model, iteration)
    return model
