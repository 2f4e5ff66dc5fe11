"""A training step with both perceptual networks beside BasicSR's own ESRGAN step with VGG19 alone."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.options import read_options

import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from torchvision.models import vgg19

from scripts.bench.measure import ROOT, Settings, Table, Work, compare, in_turns, own_peak, peak_memory

BASICSR = "BasicSR's ESRGANModel, VGG19"
OURS = "ESRGANDPModel, VGG19 + ResNet-50"

COMPILED = "compile: true"

# Ours with one thing changed: what stands in `train:`. An optimisation that is the default is switched off here.
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "channels_last: true": {"channels_last": True},
    "channels_last: true, amp: bf16": {"channels_last": True, "amp": "bf16"},
    COMPILED: {"compile": True},
    "fused Adam off": {"optim_g": {"fused": False}, "optim_d": {"fused": False}},
}

# `--quick`: everything as small as it can be.
QUICK_NETWORKS: dict[str, dict[str, Any]] = {
    "network_g": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4},
    "network_d": {"num_feat": 4},
}
QUICK_LOSS = {
    "vgg_type": "vgg11", "vgg_layer_weights": {"conv2_1": 1.0},
    "resnet_type": "resnet18", "resnet_layer_weights": {"layer1": 1.0},
}  # fmt: skip


def options(quick: bool, **changes: Any) -> dict[str, Any]:
    """The paper's networks and losses, without data, for one process; ``changes`` go into ``train:``."""
    opt = read_options(ROOT / "options/train_esrgan_dp.yml")
    gpus = min(torch.cuda.device_count(), 1)
    opt |= {"num_gpu": gpus, "dist": False, "rank": 0, "world_size": 1, "is_train": True}
    train = opt["train"]
    train["perceptual_opt"] |= {"vgg_weights": "random", "resnet_weights": "random"}  # as fast as ImageNet's
    if quick:
        train["perceptual_opt"] |= QUICK_LOSS
        for name, size in QUICK_NETWORKS.items():
            opt[name] |= size
    for key, value in changes.items():
        train[key] = train[key] | value if isinstance(value, dict) and key in train else value
    return opt


def basicsr_model(quick: bool) -> Any:
    """BasicSR's ESRGANModel with its own PerceptualLoss (VGG19 conv5_4), randomly initialised as ours."""
    opt = options(quick) | {"model_type": "ESRGANModel"}
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
    """Name of a candidate -> what makes its model; BasicSR's first."""
    ours = {name: partial(build_ours, quick, changes) for name, changes in VARIANTS.items()}
    return {BASICSR: partial(basicsr_model, quick), **ours, "batch-norm not folded": partial(build_unfolded, quick)}


def build_ours(quick: bool, changes: dict[str, Any]) -> Any:
    """ESRGANDPModel with ``changes`` in ``train:``."""
    return build_model(options(quick, **changes))


def build_unfolded(quick: bool) -> Any:
    """ESRGANDPModel whose ResNet keeps its batch-norms beside its convolutions."""
    model = build_ours(quick, {})
    model.cri_perceptual.weighted["resnet"].features.foldable = False
    return model


def step_of(model: Any, batch: int) -> Work:
    """A training step of ``model`` on ``batch`` random pairs of 32 x 32 and 128 x 128 pixels."""
    pairs = {"lq": torch.rand(batch, 3, 32, 32), "gt": torch.rand(batch, 3, 128, 128)}
    model.feed_data(pairs)
    return lambda: model.optimize_parameters(1)


def measure(settings: Settings) -> list[Table]:
    """A table for each batch size: BasicSR's step, ours, and ours with one thing changed at a time."""
    wanted = [name for name in builders(settings.quick) if settings.compile or name != COMPILED]
    models = {name: builders(settings.quick)[name]() for name in wanted}
    tables = []
    for batch in settings.batches:
        rounds = settings.rounds if batch < 16 else min(settings.rounds, 3)  # a step takes a CPU ten seconds there
        seconds = in_turns({name: step_of(model, batch) for name, model in models.items()}, rounds)
        flags = ["--batch", str(batch), *(["--quick"] if settings.quick else [])]
        # The variants' memory is compared at one size: each is a process of its own, which takes its time.
        measured = [OURS] if settings.quick else wanted if batch == settings.batches[0] else [BASICSR, OURS]
        memory = {name: peak_memory("step", name, *flags) for name in measured}
        tables.append(compare(f"Training step, batch {batch}", seconds, memory, "float32 unless said otherwise."))
    return tables


def main() -> None:
    """Take two steps of one candidate and print the peak memory of the process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("candidate", choices=list(builders(False)))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    step = step_of(builders(args.quick)[args.candidate](), args.batch)
    for _ in range(2):  # the first makes Adam's memory
        step()
    print(own_peak())


if __name__ == "__main__":
    main()
