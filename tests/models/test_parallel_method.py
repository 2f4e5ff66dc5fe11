"""The method on P processes with batch B / P: the gradients are those of one process with batch B (float64, gloo)."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401
from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.models import build_model
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tests.support.gpu import needs_gpus
from tests.support.options import SMALL_DP_LOSS, model_options
from tests.support.programs import difference

BATCH = 8
# Without batch-norm, which each process has of its own unless `sync_batch_norm` (GPUs only) is set.
NET_D = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}
TERMS: dict[str, Any] = {
    **SMALL_DP_LOSS,
    "extra_terms": [
        {"network": "vgg11", "layer_weights": {"conv1_1": 1.0}, "weights": "random", "name": "shallow", "mu": 2.0},
        {"type": "CharbonnierLoss", "mu": 1.0, "max_weight": 1.0},
    ],
}
SHARES = {"pix": 0.05, "vgg": 0.45, "resnet": 0.35, "gan": 0.15}
CASES: dict[str, dict[str, Any]] = {
    "ESRGAN-DP": {"model_type": "ESRGANDPModel"},
    "accumulated": {"model_type": "ESRGANDPModel", "grad_accumulation": 2},
    "four terms, accumulated": {"model_type": "PSNRModel", "perceptual_opt": TERMS, "grad_accumulation": 2},
    "balanced, accumulated": {
        "model_type": "SRGANDPModel",
        "balance": {"shares": SHARES, "ema": 0},
        "grad_accumulation": 2,
    },
    "balanced by value": {"model_type": "PSNRModel", "balance": {"by": "value", "shares": {"pix": 0.5, "percep": 0.5}}},
    "each its own w": {"model_type": "PSNRModel", "perceptual_opt": {**SMALL_DP_LOSS, "sync_weight": False}},
    "each its own mean": {
        "model_type": "ESRGANDPModel",
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5.0, "sync_mean": False},
    },
}
# D runs twice before its only backward pass, also if it has statistics, of each process's own images.
BATCH_NORM: dict[str, dict[str, Any]] = {"each its own batch-norm": {"model_type": "ESRGANDPModel"}}
# A discriminator whose batch-norm takes the statistics of all processes' images on GPUs.
ON_GPUS: dict[str, dict[str, Any]] = {"one batch-norm": {"model_type": "ESRGANDPModel", "sync_batch_norm": True}}
ALL = CASES | BATCH_NORM | ON_GPUS
SYNCHRONISED = [name for name in ALL if "its own" not in name]


def batch() -> dict[str, Tensor]:
    """Pairs that differ, so that the ratio of the terms in a part is not that of the mini-batch."""
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    gt *= torch.linspace(0.1, 1, BATCH, dtype=torch.float64).view(-1, 1, 1, 1)
    return {"lq": nn.functional.avg_pool2d(gt, 4), "gt": gt}


def build(case: str, rank: int = 0, world_size: int = 1, num_gpu: int = 0) -> Any:
    train = copy.deepcopy(ALL[case])
    opt = model_options(train.pop("model_type"), Path(), **train) | {"num_gpu": num_gpu}
    if case in CASES:
        opt["network_d"] = dict(NET_D)
    torch.manual_seed(rank)  # the others get the networks of rank 0
    torch.set_default_dtype(torch.float64)  # DistributedDataParallel takes the networks as they are built
    try:
        return build_model(opt | {"dist": distributed.is_initialized(), "rank": rank, "world_size": world_size})
    finally:
        torch.set_default_dtype(torch.float32)


def gradients(case: str, rank: int = 0, world_size: int = 1, num_gpu: int = 0) -> tuple[dict[str, Tensor], int]:
    """Of G and D after one step on this process's share of the batch; and how often the processes averaged them."""
    model = build(case, rank, world_size, num_gpu)
    nets = {name: getattr(model, name) for name in ("net_g", "net_d") if hasattr(model, name)}
    averaged = []
    for net in nets.values():
        if isinstance(net, DistributedDataParallel):
            net.register_comm_hook(None, lambda _, bucket: averaged.append(0) or allreduce_hook(None, bucket))
    model.feed_data({name: images[rank::world_size] for name, images in batch().items()})
    model.optimize_parameters(1)
    if case.startswith("balanced"):
        balancer, log = model.step.balancer, model.log_dict
        total = sum(log[f"share_{name}"].item() for name in balancer.targets)
        assert balancer.by == "value" or all(
            abs(log[f"share_{name}"].item() / total - share) < 1e-6 for name, share in balancer.targets.items()
        )
    found = {
        f"{name}.{key}": parameter.grad.cpu()
        for name, net in nets.items()
        for key, parameter in model.get_bare_model(net).named_parameters()
    }
    return found, len(averaged)


@cache
def of_one_process(case: str) -> tuple[dict[str, Tensor], int]:
    return gradients(case)


def work(rank: int, world_size: int, folder: str, backend: str) -> None:
    torch.set_num_threads(1)
    num_gpu = int(backend == "nccl")
    if num_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, f"file://{folder}/meet", rank=rank, world_size=world_size)
    cases = [case for case in ALL if num_gpu or case not in ON_GPUS]
    torch.save({case: gradients(case, rank, world_size, num_gpu) for case in cases}, f"{folder}/{rank}.pt")
    model = build("each its own batch-norm", rank, world_size, num_gpu)
    images = {name: images[rank::world_size] for name, images in batch().items()}
    weights = []
    for factor in (1.0, math.nan if rank == world_size - 1 else 1.0, 1.0):
        model.feed_data({**images, "gt": images["gt"] * factor})
        model.optimize_parameters(1)
        weights.append([value.detach().clone() for net in (model.net_g, model.net_d) for value in net.parameters()])
    assert difference(weights[0], weights[1]) is None, "a step that is not finite in one process"
    assert difference(weights[1], weights[2]) == "all/0"
    everywhere = all_gather([value.cpu() for value in weights[2]])
    assert all(difference(weights, everywhere[0]) is None for weights in everywhere), "the same bits in all processes"
    distributed.destroy_process_group()


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest, relative to the largest gradient of its tensor.

    That of D's last bias is what two sums of 1e-2 leave of each other; 1e-6 stands in for it.
    """
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)).item()
        for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("world_size", "backend"),
    [(2, "gloo"), (4, "gloo"), pytest.param(min(torch.cuda.device_count(), 2), "nccl", marks=needs_gpus(1, "NCCL"))],
)
def test_processes_have_the_gradients_of_one(world_size: int, backend: str, tmp_path: Path) -> None:
    method = "spawn" if backend == "nccl" else "forkserver"
    multiprocessing.start_processes(work, (world_size, str(tmp_path), backend), world_size, start_method=method)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    buckets = 2  # all of G's gradients, and all of D's
    for case in ranks[0]:
        expected, _ = of_one_process(case)
        largest = max(largest_difference(rank[case][0], expected) for rank in ranks)
        assert math.isfinite(largest)
        assert (largest < 1e-9) == (case in SYNCHRONISED or world_size == 1), (case, largest)
    assert {rank["accumulated"][1] for rank in ranks} == {buckets}, "averaged with the last part alone"


def test_synchronised_batch_norm_needs_a_gpu(tmp_path: Path) -> None:
    opt = model_options("ESRGANDPModel", tmp_path, sync_batch_norm=True) | {"dist": True, "world_size": 2}
    with pytest.raises(UserError, match="sync_batch_norm needs GPUs"):
        build_model(opt)
