"""Give objectives the same strength: the norm of the perceptual gradient at the image is that of VGG alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dp_basicsr.data.stream import TrainStream
from dp_basicsr.losses import DualPerceptualLoss
from dp_basicsr.models.validation import as_float
from dp_basicsr.options import read_options
from dp_basicsr.studies.study import Study
from dp_basicsr.utils.safe_load import load

import torch
import yaml
from basicsr.archs import build_network
from torch import nn

STEPS = 50  # mini-batches, or 2 for a smoke run

# Of one mini-batch: squared norms of the gradients of L_VGG and L_Res at the image, their product, and w of Eq. 9.
Gradients = tuple[float, float, float, float]


def calibration_file(study: Study) -> Path:
    """Return the file with the calibration of a study."""
    return Path("experiments", f"{study.prefix}{study.name}.calibration.yml")


def study_options(study: Study) -> dict[str, Any]:
    """Return the options that all rows of a study have in common."""
    base, smoke = next(iter(study.bases)), study.smoke
    entries = (*study.overrides, *((*smoke.train, *smoke.network[base]) if smoke else ()))
    opt = read_options(study.options(base, "train"), entries)
    for name, dataset in opt["datasets"].items():
        dataset |= {"phase": name.split("_")[0], "scale": opt["scale"]}
    # What the start of a run would add; the calibration runs in this process, on the CPU.
    return opt | {"rank": 0, "world_size": 1, "dist": False, "num_gpu": 0}


def read_network(opt: dict[str, Any], path: str | Path | None) -> nn.Module:
    """Build the generator with the averaged weights of a file, or with random ones."""
    network: nn.Module = build_network(dict(opt["network_g"]))
    if path:
        # The averaged weights are what a trained run is tested with.
        network.load_state_dict(load(Path(path), "model", "train it first")["params_ema"])
    return network.eval()


def calibrate(study: Study) -> None:
    """Measure the gradients on the first mini-batches with the start network, once, and write the weights."""
    path = calibration_file(study)
    # Never measured again: the trainings that exist were made with the first weights.
    if path.is_file() or not any(row.calibrated for row in study.rows):
        return
    opt = study_options(study)
    torch.manual_seed(opt["manual_seed"])
    network = read_network(opt, opt["path"].get("pretrain_network_g"))
    settings = {key: value for key, value in opt["train"]["perceptual_opt"].items() if key != "type"}
    loss = DualPerceptualLoss(**settings)
    measured: list[Gradients] = []
    for batch, _ in zip(TrainStream(opt).batches(0), range(2 if study.smoke else STEPS), strict=False):
        lq, gt = (as_float(batch[key], torch.device("cpu")) for key in ("lq", "gt"))
        with torch.no_grad():
            result = network(lq)
        # The image is the variable: gradients are wanted at it, not at the network's weights.
        result.requires_grad_()
        values = [term(result, gt) for term in (loss.all_terms["vgg"], loss.all_terms["resnet"])]
        # The norms of all combinations follow from three products, so each network runs once.
        # In float64, because squares of small gradients are summed over a whole batch.
        vgg, resnet = (torch.autograd.grad(value, result)[0].double() for value in values)
        w = float(loss.rules["resnet"].weight(*(value.detach() for value in values)))
        products = vgg.square().sum(), resnet.square().sum(), (vgg * resnet).sum()
        measured.append((float(products[0]), float(products[1]), float(products[2]), w))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(weights_of(measured), sort_keys=False), encoding="utf-8")


def weights_of(measured: Sequence[Gradients]) -> dict[str, Any]:
    """Return the static weight, the mean w, and for each objective the ``loss_weight`` that gives it VGG's norm.

    The gradient of L_VGG + w * L_Res is that of L_VGG plus w times that of L_Res: its norm follows from the products.
    """
    mean_w = fmean(w for *_, w in measured)
    # None stands for the w of each mini-batch, as the dynamic objective has it.
    combinations = {"vgg": (1.0, 0.0), "resnet": (0.0, 1.0), "static": (1.0, mean_w), "dynamic": (1.0, None)}
    norms = {
        name: fmean(
            math.sqrt(a * a * vv + 2 * a * (w if b is None else b) * vr + (w if b is None else b) ** 2 * rr)
            for vv, rr, vr, w in measured
        )
        for name, (a, b) in combinations.items()
    }
    overrides = {name: [f"train:perceptual_opt:loss_weight={norms['vgg'] / norms[name]:.6g}"] for name in norms}
    overrides["static"].append(f"train:perceptual_opt:static_weight={mean_w:.6g}")
    return {"overrides": overrides, "mean_w": mean_w, "norms": norms, "mini_batches": len(measured)}
