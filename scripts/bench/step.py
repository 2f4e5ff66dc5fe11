"""Compare our training step, with both perceptual networks, with BasicSR's ESRGAN step with VGG19 only."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TextIO

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.options import read_options
from dp_basicsr.runs.limits import keep_freed_memory

import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from torchvision.models import vgg19

from scripts.bench.measure import ROOT, Settings, Table, Work, compare, in_turns, own_peak, seconds_in_a_row

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
    GIVEN_BACK: {},
}

# `--quick`: everything as small as possible.
QUICK_NETWORKS: dict[str, dict[str, Any]] = {
    "network_g": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4},
    "network_d": {"num_feat": 4},
}
QUICK_LOSS = {
    "vgg_type": "vgg11", "vgg_layer_weights": {"conv2_1": 1.0},
    "resnet_type": "resnet18", "resnet_layer_weights": {"layer1": 1.0},
}  # fmt: skip


def options(quick: bool, **changes: Any) -> dict[str, Any]:
    """Return the paper's networks and losses for one process without data; ``changes`` are applied to ``train:``."""
    opt = read_options(ROOT / "options/train_esrgan_dp.yml")
    gpus = min(torch.cuda.device_count(), 1)
    opt |= {"num_gpu": gpus, "dist": False, "rank": 0, "world_size": 1, "is_train": True}
    train = opt["train"]
    train["perceptual_opt"] |= {"vgg_weights": "random", "resnet_weights": "random"}  # as fast as ImageNet weights
    if quick:
        train["perceptual_opt"] |= QUICK_LOSS
        for name, size in QUICK_NETWORKS.items():
            opt[name] |= size
    for key, value in changes.items():
        train[key] = train[key] | value if isinstance(value, dict) and key in train else value
    return opt


def basicsr_model(quick: bool) -> Any:
    """Build BasicSR's ESRGANModel with its PerceptualLoss (VGG19 conv5_4), randomly initialised like ours."""
    opt = options(quick) | {"model_type": "ESRGANModel"}
    del opt["train"]["gan_opt"]["sync_mean"]  # an option of ours
    if quick:  # VGG19 alone takes seconds to build
        opt["train"]["perceptual_opt"] = None
        return build_model(opt)
    opt["train"]["perceptual_opt"] = {
        "type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19", "criterion": "l1"
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        vgg_arch.VGG_PRETRAIN_PATH = f"{folder}/vgg19.pth"
        torch.save(vgg19(weights=None).state_dict(), vgg_arch.VGG_PRETRAIN_PATH)
        return build_model(opt)


def builders(quick: bool) -> Mapping[str, Callable[[], Any]]:
    """Return functions that build the model of each candidate, by name; BasicSR's first."""
    ours = {name: partial(build_ours, quick, changes) for name, changes in VARIANTS.items()}
    return {BASICSR: partial(basicsr_model, quick), **ours, "batch-norm not folded": partial(build_unfolded, quick)}


def build_ours(quick: bool, changes: dict[str, Any]) -> Any:
    """Build ESRGANDPModel with ``changes`` in ``train:``."""
    return build_model(options(quick, **changes))


def build_unfolded(quick: bool) -> Any:
    """Build ESRGANDPModel with a ResNet whose batch-norms are not folded into its convolutions."""
    model = build_ours(quick, {})
    features = model.cri_perceptual.weighted["resnet"].features
    features.folds = False
    return model


def step_of(model: Any, batch: int) -> Work:
    """Return a training step of ``model`` on ``batch`` random pairs of 32 x 32 and 128 x 128 pixels."""
    model.feed_data({"lq": torch.rand(batch, 3, 32, 32), "gt": torch.rand(batch, 3, 128, 128)})
    return lambda: model.optimize_parameters(1)


class Candidate:
    """A candidate in its own process, so that memory settings of one do not affect another.

    Args:
        name: A key of ``builders``.
        batch: Number of pairs of 32 x 32 and 128 x 128 pixels.
        quick: See ``scripts.bench.measure.Settings``.
    """

    def __init__(self, name: str, batch: int, quick: bool) -> None:
        command = [sys.executable, "-m", "scripts.bench.step", name, str(batch), *(["--quick"] if quick else [])]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> float:
        """Return the seconds of a ``step`` (the mean of a turn) or the ``peak`` memory in MB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; the reason is on stderr
            print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args!r} ended with exit code {self.process.wait()}")
        return float(answer)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def serve(name: str, batch: int, quick: bool, lines: Iterable[str], answers: TextIO) -> None:
    """Answer each line, ``step`` or ``peak``; see ``Candidate.ask``."""
    if name not in (BASICSR, GIVEN_BACK) and not torch.cuda.is_available():
        keep_freed_memory()  # like train.py
    step, steps = step_of(builders(quick)[name](), batch), 1 if quick else STEPS_IN_A_TURN
    for line in lines:
        print(own_peak() if line.strip() == "peak" else seconds_in_a_row(step, steps), file=answers, flush=True)


def measure(settings: Settings) -> list[Table]:
    """Return a table per batch size: BasicSR's step and ours; for small batches, also ours with one change each."""
    tables = []
    for batch in settings.batches:
        large = batch >= 16  # a step takes ten seconds and 7 GB on a CPU
        rounds = min(settings.rounds, 3) if large else settings.rounds
        wanted = [name for name in builders(settings.quick) if settings.compile or name not in (COMPILED, TOGETHER)]
        if large or settings.quick:
            wanted = wanted[:2]
        candidates = {name: Candidate(name, batch, settings.quick) for name in wanted}
        try:
            seconds = in_turns(candidates, rounds, lambda candidate: candidate.ask("step"))
            memory = {name: candidate.ask("peak") for name, candidate in candidates.items()}
        finally:
            for candidate in candidates.values():
                candidate.end()
        note = (
            f"{STEPS_IN_A_TURN} steps per turn, after one warm-up; float32 unless stated otherwise; each "
            "candidate in its own process."
        )
        tables.append(compare(f"Training step, batch {batch}", seconds, memory, note))
    return tables


def main() -> None:
    """Run one candidate: answer each ``step`` on stdin with its seconds, each ``peak`` with its memory in MB."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("candidate", choices=list(builders(False)))
    parser.add_argument("batch", type=int)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # BasicSR prints to stdout
    serve(args.candidate, args.batch, args.quick, sys.stdin, answers)


if __name__ == "__main__":
    main()
