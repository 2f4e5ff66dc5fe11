"""Compare our training step, with both perceptual networks, with BasicSR's ESRGAN step with VGG19 only."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.options import read_options
from dp_basicsr.runs.limits import keep_freed_memory

import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from torchvision.models import vgg19

from benchmarks.measure import ROOT, Settings, Table, Work, compare, in_turns, own_peak, seconds_in_a_row

BASICSR = "BasicSR's ESRGANModel, VGG19"
OURS = "ESRGANDPModel, VGG19 + ResNet-50"

# A turn has several consecutive steps, like a run; the first one after a pause is slower and is not measured.
STEPS_IN_A_TURN = 20 if torch.cuda.is_available() else 2

COMPILED = "compile: true"
TOGETHER = "amp: bf16, compile: true"
GIVEN_BACK = "freed memory given back"

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
}


def options(quick: bool, **changes: Any) -> dict[str, Any]:
    """Return the paper's networks and losses for one process without data; ``changes`` are applied to ``train:``."""
    opt = read_options(ROOT / "options/train_esrgan_dp.yml")
    opt |= {"num_gpu": min(torch.cuda.device_count(), 1), "dist": False, "rank": 0, "world_size": 1, "is_train": True}
    loss = opt["train"]["perceptual_opt"]
    loss |= {"vgg_weights": "random", "resnet_weights": "random"}  # as fast as ImageNet weights
    if quick:
        loss |= {"vgg_type": "vgg11", "vgg_layer_weights": {"conv2_1": 1.0}}
        loss |= {"resnet_type": "resnet18", "resnet_layer_weights": {"layer1": 1.0}}
        opt["network_g"] |= {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}
        opt["network_d"] |= {"num_feat": 4}
    opt["train"] |= changes
    return opt


def basicsr_model(quick: bool) -> Any:
    """Build BasicSR's ESRGANModel with its PerceptualLoss (VGG19 conv5_4), randomly initialised like ours."""
    loss = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19", "criterion": "l1"}
    # VGG19 alone takes seconds to build.
    opt = options(quick, perceptual_opt=None if quick else loss) | {"model_type": "ESRGANModel"}
    del opt["train"]["gan_opt"]["sync_mean"]  # an option of ours
    with tempfile.TemporaryDirectory() as folder:
        if not quick:
            vgg_arch.VGG_PRETRAIN_PATH = f"{folder}/vgg19.pth"
            torch.save(vgg19(weights=None).state_dict(), vgg_arch.VGG_PRETRAIN_PATH)
        return build_model(opt)


def our_model(quick: bool, changes: dict[str, Any], folded: bool = True) -> Any:
    """Build ESRGANDPModel with ``changes`` in ``train:``, and ResNet's batch-norms folded into its convolutions."""
    model = build_model(options(quick, **changes))
    if not folded:
        model.cri_perceptual.all_terms["resnet"].features.folds = False
    return model


def builders(quick: bool) -> Mapping[str, Callable[[], Any]]:
    """Return functions that build the model of each candidate, by name; BasicSR's first."""
    models = {BASICSR: partial(basicsr_model, quick)}
    models |= {name: partial(our_model, quick, changes) for name, changes in VARIANTS.items()}
    return models | {"batch-norm not folded": partial(our_model, quick, {}, folded=False)}


def step_of(model: Any, batch: int) -> Work:
    """Return a training step of ``model`` on ``batch`` random pairs of 32 x 32 and 128 x 128 pixels."""
    model.feed_data({"lq": torch.rand(batch, 3, 32, 32), "gt": torch.rand(batch, 3, 128, 128)})
    return lambda: model.optimize_parameters(1)


def serve(name: str, batch: int, quick: bool, requests: Connection) -> None:
    """Answer ``step`` with its seconds (the mean of a turn), and ``peak`` with this process' memory in MB."""
    if name not in (BASICSR, GIVEN_BACK) and not torch.cuda.is_available():
        keep_freed_memory()  # like train.py
    step, steps = step_of(builders(quick)[name](), batch), 1 if quick else STEPS_IN_A_TURN
    while True:
        requests.send(own_peak() if requests.recv() == "peak" else seconds_in_a_row(step, steps))


def measure(settings: Settings) -> list[Table]:
    """Return a table per batch size: BasicSR's step and ours; for small batches, also ours with one change each."""
    tables = []
    for batch in settings.batches:
        large = batch >= 16  # a step takes ten seconds and 7 GB on a CPU
        wanted = [name for name in builders(settings.quick) if settings.compile or name not in (COMPILED, TOGETHER)]
        if large or settings.quick:
            wanted = wanted[:2]
        # A process each, so that memory settings of one do not affect another.
        context = multiprocessing.get_context("spawn")
        pipes = {name: context.Pipe() for name in wanted}
        processes = [
            context.Process(target=serve, args=(name, batch, settings.quick, far), daemon=True)
            for name, (_, far) in pipes.items()
        ]

        def ask(name: str, request: str = "step", pipes: dict[str, Any] = pipes) -> float:
            near, _ = pipes[name]
            near.send(request)
            return near.recv()

        try:
            for process, (_, far) in zip(processes, pipes.values(), strict=True):
                process.start()
                far.close()  # so that ``recv`` ends when the process does; its traceback is on stderr
            rounds = min(settings.rounds, 3) if large else settings.rounds
            seconds = in_turns({name: name for name in wanted}, rounds, ask)
            memory = {name: ask(name, "peak") for name in wanted}
        finally:
            for process in processes:
                process.kill()
        note = f"{STEPS_IN_A_TURN} steps per turn, after one warm-up; float32 unless stated otherwise; a process each."
        tables.append(compare(f"Training step, batch {batch}", seconds, memory, note))
    return tables
