"""Time a training step with both perceptual networks against BasicSR's own ESRGAN step with VGG alone, in turns."""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)
from dp_basicsr.options import read_options

import torch
from basicsr.archs import vgg_arch
from basicsr.models import build_model
from torchvision.models import vgg19


def options(**changes: Any) -> dict[str, Any]:
    """The paper's networks and losses, without data, for one process."""
    opt = read_options(Path(__file__).resolve().parents[1] / "options/train_esrgan_dp.yml")
    gpus = min(torch.cuda.device_count(), 1)
    opt |= {"num_gpu": gpus, "dist": False, "rank": 0, "world_size": 1, "is_train": True}
    opt["train"]["perceptual_opt"] |= {"vgg_weights": "random", "resnet_weights": "random"}  # as fast as ImageNet's
    opt["train"] |= changes
    return opt


def basicsr_model() -> Any:
    """BasicSR's ESRGANModel with its own PerceptualLoss (VGG19 conv5_4), randomly initialised as ours."""
    perceptual = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "vgg_type": "vgg19", "criterion": "l1"}
    with tempfile.TemporaryDirectory() as folder:
        vgg_arch.VGG_PRETRAIN_PATH = f"{folder}/vgg19.pth"
        torch.save(vgg19(weights=None).state_dict(), vgg_arch.VGG_PRETRAIN_PATH)
        return build_model(options(perceptual_opt=perceptual) | {"model_type": "ESRGANModel"})


def time_step(model: Any, batch: dict[str, torch.Tensor], iteration: int) -> float:
    """Seconds of one step, the device's work included."""
    synchronise: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    model.feed_data(batch)
    synchronise()
    start = time.perf_counter()
    model.optimize_parameters(iteration)
    synchronise()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="pairs of 32 x 32 and 128 x 128 pixels")
    parser.add_argument("--rounds", type=int, default=5, help="counted steps of each, after one that is not")
    args = parser.parse_args(argv)
    batch = {"lq": torch.rand(args.batch, 3, 32, 32), "gt": torch.rand(args.batch, 3, 128, 128)}
    models = {
        "BasicSR's ESRGANModel, VGG19": basicsr_model(),
        "ESRGANDPModel, VGG19 + ResNet-50": build_model(options()),
        "the same, channels_last: true": build_model(options(channels_last=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for iteration in range(1, args.rounds + 2):
        for name, model in models.items():
            seconds[name].append(time_step(model, copy.copy(batch), iteration))
    base, *_ = (times[1:] for times in seconds.values())
    threads = torch.get_num_threads()
    print(f"\n{args.batch} pairs, {args.rounds} rounds in turns, {threads} threads; median seconds, ratio (spread)")
    for name, times in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(times[1:], base, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<36}{statistics.median(times[1:]):>7.2f} s   {spread}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
