"""The small option file, its parts, and options as the programs complete them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.options import override, parse_command_line, read_given_options
from dp_basicsr.options.reading import parse_yaml
from dp_basicsr.runs.start import start_run

import torch
import yaml

from tests.support import networks  # noqa: F401 (registers SmallDiscriminator)
from tests.support.gpu import current_device

SMALL = """
name: small
model_type: ESRGANDPModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: pairs
    type: PairedImageDataset
    dataroot_gt: pairs/GT
    dataroot_lq: pairs/LRbicx4
    io_backend: {type: disk}
    gt_size: 32
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 2
  val_1: &set
    name: there
    type: PairedImageDataset
    dataroot_gt: pairs/GT
    dataroot_lq: pairs/LRbicx4
    io_backend: {type: disk}
  val_2: {<<: *set, name: not_there, dataroot_gt: datasets/nowhere}
  test_1: *set
  test_2: {<<: *set, name: not_there, dataroot_gt: datasets/nowhere}
network_g: {type: RRDBNetDP, scale: 4, num_feat: 8, num_block: 1, num_grow_ch: 4}
network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 4}
path: {pretrain_network_g: ~}
train:
  ema_decay: 0.9
  optim_g: &adam {type: Adam, lr: 1e-3, betas: [0.9, 0.99]}
  optim_d: *adam
  scheduler: {type: MultiStepLR, milestones: [5], gamma: 0.5}
  total_iter: 7
  pixel_opt: {type: L1Loss, loss_weight: 1e-2}
  perceptual_opt: {type: DPLoss, vgg_type: vgg11, vgg_layer_weights: {conv2_1: 1}, resnet_type: resnet18,
                   resnet_layer_weights: {layer1: 1}, vgg_weights: random, resnet_weights: random}
  gan_opt: {type: GANLoss, gan_type: vanilla, loss_weight: 5e-3}
val: {val_freq: 7, save_img: true, suffix: small, metrics: {psnr_rgb: {type: calculate_psnr, crop_border: 4}}}
logger: {print_freq: 1, save_checkpoint_freq: 3, use_tb_logger: true}
"""


SMALL_PSNR = """
name: small
model_type: PSNRModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train:
    {name: pairs, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4, gt_size: 32,
     io_backend: {type: disk}, use_hflip: true, use_rot: true, num_worker_per_gpu: 0, batch_size_per_gpu: 1,
     dataset_enlarge_ratio: 2}
network_g: {type: RRDBNetDP, scale: 4, num_feat: 8, num_block: 1, num_grow_ch: 4}
path: {pretrain_network_g: ~}
train:
  optim_g: {type: Adam, lr: 1e-3}
  scheduler: {type: MultiStepLR, milestones: [3], gamma: 0.5}
  total_iter: 4
  pixel_opt: {type: L1Loss}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
"""


def write_small(*entries: str, base: str = SMALL, file: str | Path = "small.yml") -> None:
    """Write SMALL, or another of these files, with values changed as on the command line (``key:key=value``)."""
    opt = parse_yaml(base, "SMALL")
    override(opt, entries)
    Path(file).write_text(yaml.safe_dump(opt), encoding="utf-8")


def write_small_gan(file: str = "small.yml", **changes: Any) -> None:
    """Write SMALL without sets to validate and to test."""
    opt = parse_yaml(SMALL, "SMALL")
    opt["datasets"] = {"train": opt["datasets"]["train"]}
    Path(file).write_text(yaml.safe_dump(opt | {"model_type": "SRGANDPModel", "val": None, **changes}))


SMALL_DP_LOSS: dict[str, Any] = {
    "type": "DPLoss",
    "vgg_type": "vgg11",
    "vgg_layer_weights": {"conv2_1": 1.0},
    "resnet_type": "resnet18",
    "resnet_layer_weights": {"layer1": 1.0},
    "vgg_weights": "random",
    "resnet_weights": "random",
}


def twice(options: dict[str, Any]) -> dict[str, Any]:
    """Keys for the first and for the second degradation of Real-ESRGAN."""
    return options | {f"{key}2": value for key, value in options.items()}


REAL_ESRGAN_KERNELS = twice({
    "blur_kernel_size": 21, "kernel_list": ["iso", "aniso", "plateau_iso"], "kernel_prob": [0.5, 0.3, 0.2],
    "sinc_prob": 0.1, "blur_sigma": [0.2, 3], "betag_range": [0.5, 4], "betap_range": [1, 2],
}) | {"final_sinc_prob": 0.8}  # fmt: skip

# A small version of the paper's discriminator, for images of 128 x 128 pixels.
VGG_STYLE_D: dict[str, Any] = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 128}


def parse_options(argv: Sequence[str], is_train: bool = True) -> dict[str, Any]:
    """Return options as completed by train.py (test.py)."""
    args = parse_command_line("", argv, is_train)
    return start_run(read_given_options(args), args).as_dict()


def model_options(model_type: str, folder: Path, **train: Any) -> dict[str, Any]:
    """Return options of a small model on the test's device, as completed by train.py."""
    adam = {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]}
    return {
        "name": "small",
        "model_type": model_type,
        "scale": 4,
        "num_gpu": int(current_device().type != "cpu"),
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "datasets": {},
        "network_g": {"type": "RRDBNetDP", "scale": 4, "num_feat": 8, "num_block": 1, "num_grow_ch": 4},
        "network_d": {"type": "SmallDiscriminator"},
        "path": {"models": str(folder), "training_states": str(folder), "resume_state": None},
        "train": {
            "optim_g": dict(adam),
            "optim_d": dict(adam),
            "scheduler": {"type": "MultiStepLR", "milestones": [2], "gamma": 0.5},
            "total_iter": 4,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1e-2},
            "perceptual_opt": dict(SMALL_DP_LOSS),
            "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5e-3},
            **train,
        },
        "logger": {"print_freq": 1},
    }


def random_batch(seed: int, dtype: torch.dtype = torch.float32, size: int = 32) -> dict[str, torch.Tensor]:
    """Two random pairs on the CPU: lq (2, 3, size / 4, size / 4) and gt (2, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "lq": torch.rand(2, 3, size // 4, size // 4, generator=generator, dtype=dtype),
        "gt": torch.rand(2, 3, size, size, generator=generator, dtype=dtype),
    }
