"""Compare our training step, with both perceptual networks, with BasicSR's ESRGAN step with VGG19 only."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.runs.limits import keep_freed_memory

import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from torchvision.models import vgg19

from benchmarks.measure import Settings, Table, Work, compare, in_turns, own_peak, read_shipped, seconds_in_a_row

# A turn has several consecutive steps, like a run; the first one after a pause is slower and is not measured.
STEPS_IN_A_TURN = 20 if torch.cuda.is_available() else 2

BASICSR = "BasicSR's ESRGANModel, VGG19"
OURS = "ESRGANDPModel, VGG19 + ResNet-50"
COMPILED, TOGETHER = "compile: true", "amp: bf16, compile: true"
GIVEN_BACK, NOT_FOLDED = "freed memory given back", "batch-norm not folded"

# Ours with one change each in `train:`; default optimisations are switched off.
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "channels_last: false": {"channels_last": False},
    "amp: bf16": {"amp": "bf16"},
    COMPILED: {"compile": True},
    TOGETHER: {"amp": "bf16", "compile": True},
    "checkpointing: true": {"checkpointing": True},
    "balance": {"balance": {"shares": {"pix": 0.05, "vgg": 0.45, "resnet": 0.35, "gan": 0.15}}},
    GIVEN_BACK: {},
    NOT_FOLDED: {},
}


def options(quick: bool) -> dict[str, Any]:
    """Return the paper's networks and losses for one process without data."""
    opt = read_shipped("train_esrgan_dp.yml", is_train=True)
    loss = opt["train"]["perceptual_opt"]
    loss |= {"vgg_weights": "random", "resnet_weights": "random"}  # as fast as ImageNet weights
    if quick:
        loss |= {"vgg_type": "vgg11", "vgg_layer_weights": {"conv2_1": 1.0}}
        loss |= {"resnet_type": "resnet18", "resnet_layer_weights": {"layer1": 1.0}}
        opt["network_g"] |= {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}
        opt["network_d"] |= {"num_feat": 4}
    return opt


def model_of(name: str, quick: bool) -> Any:
    """Build the model of BASICSR or of one of VARIANTS, randomly initialised."""
    opt = options(quick)
    if name != BASICSR:
        opt["train"] |= VARIANTS[name]
        model = build_model(opt)
        if name == NOT_FOLDED:
            model.cri_perceptual.all_terms["resnet"].features.folds = False
        return model
    opt["model_type"] = "ESRGANModel"
    del opt["train"]["gan_opt"]["sync_mean"]  # an option of ours
    opt["train"]["perceptual_opt"] = None  # VGG19 alone takes seconds to build
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19", "criterion": "l1"}
            opt["train"]["perceptual_opt"] = loss
            vgg_arch.VGG_PRETRAIN_PATH = f"{folder}/vgg19.pth"
            torch.save(vgg19(weights=None).state_dict(), vgg_arch.VGG_PRETRAIN_PATH)
        return build_model(opt)


def step_of(model: Any, batch: int) -> Work:
    """Return a training step of ``model`` on ``batch`` random pairs of 32 x 32 and 128 x 128 pixels."""
    model.feed_data({"lq": torch.rand(batch, 3, 32, 32), "gt": torch.rand(batch, 3, 128, 128)})
    return lambda: model.optimize_parameters(1)


_turn: tuple[Work, int]  # of a candidate's process: its step, and how often a turn repeats it


def prepare(name: str, batch: int, quick: bool) -> None:
    """Build a candidate in the process that will time it."""
    global _turn
    if name not in (BASICSR, GIVEN_BACK) and not torch.cuda.is_available():
        keep_freed_memory()  # like train.py
    _turn = step_of(model_of(name, quick), batch), 1 if quick else STEPS_IN_A_TURN


def take_turn() -> float:
    """Return the mean seconds of the steps of a turn, in a prepared process."""
    return seconds_in_a_row(*_turn)


def measure(settings: Settings) -> list[Table]:
    """Return a table per batch size: BasicSR's step and ours; for small batches, also ours with one change each."""
    tables = []
    for batch in settings.batches:
        large = batch >= 16  # a step takes ten seconds and 7 GB on a CPU
        wanted = [BASICSR, *(name for name in VARIANTS if settings.compile or name not in (COMPILED, TOGETHER))]
        if large or settings.quick:
            wanted = wanted[:2]
        context = multiprocessing.get_context("spawn")
        with ExitStack() as stack:
            # A process each, so that memory settings of one do not affect another.
            pools = {
                name: stack.enter_context(ProcessPoolExecutor(1, context, prepare, (name, batch, settings.quick)))
                for name in wanted
            }
            rounds = min(settings.rounds, 3) if large else settings.rounds
            seconds = in_turns(pools, rounds, lambda pool: pool.submit(take_turn).result())
            memory = {name: pool.submit(own_peak).result() for name, pool in pools.items()}
        note = f"{STEPS_IN_A_TURN} steps per turn, after one warm-up; float32 unless stated otherwise; a process each."
        tables.append(compare(f"Training step, batch {batch}", seconds, memory, note))
    return tables
