"""Small networks and losses with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_basicsr.archs import load_network
from dp_basicsr.archs.own_networks import build_network
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.losses import DPLoss

import torch
from basicsr.archs.swinir_arch import SwinIR
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from tests.support.gpu import on_device

MakeNetwork = Callable[..., nn.Module]


def make_network(
    arch: str = "RRDBNetDP", scale: int = 4, num_feat: int = 8, num_grow_ch: int = 32, num_block: int = 2
) -> nn.Module:
    """A generator with random weights whose output looks like an image: its mean and contrast are those of its input.

    BasicSR's initialisation gives output near 0, which would hide differences behind clipping.
    """
    torch.manual_seed(scale)
    sizes = {"num_feat": num_feat, "num_block": num_block, "num_grow_ch": num_grow_ch}
    net: nn.Module = build_network(arch, scale=scale, **sizes).to_empty(device="cpu").eval()
    for name, parameter in net.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim == 4 else 1
        parameter.data = torch.randn(parameter.shape) * (0.9 / fan_in**0.5 if parameter.ndim == 4 else 0.01)
        if name == "conv_last.bias":
            parameter.data += 0.5
    return net.requires_grad_(False)


def network_file(name: str = "net.pth", **size: Any) -> Path:
    """Write a file of a small network (see ``make_network``) in BasicSR's form to the current folder."""
    torch.save({"params": make_network(**size).state_dict()}, name)
    return Path(name)


def small_opened(arch: str = "RRDBNetDP", scale: int = 4, **size: Any) -> OpenedNetwork:
    """Write ``net.pth`` of a small network and open it."""
    path = network_file(arch=arch, scale=scale, **size)
    return load_network([path], scale=scale if arch == "RRDBNetDP" and scale < 4 else None)


def swinir() -> nn.Module:
    return SwinIR(
        img_size=8, window_size=4, depths=[2], embed_dim=8, num_heads=[2], upscale=2, upsampler="pixelshuffle"
    )


@ARCH_REGISTRY.register()
class SmallDiscriminator(nn.Sequential):
    """Map (N, 3, 32, 32) to (N, 1) by convolutions, batch-norm and a linear layer, as VGGStyleDiscriminator does."""

    def __init__(self) -> None:
        down = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(4, 8, **down), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, **down), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(8 * 8 * 8, 1),
        )  # fmt: skip


def small_loss(**options: Any) -> DPLoss:
    """A small DPLoss on randomly initialised networks, in float64."""
    small = {
        "vgg_type": "vgg11",
        "vgg_layer_weights": {"conv3_1": 1},
        "resnet_type": "resnet18",
        "vgg_weights": "random",
        "resnet_weights": "random",
    }
    return on_device(DPLoss(**{**small, **options}).double())


def images(size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, gt = on_device(torch.rand(2, 2, 3, size, size, generator=generator, dtype=torch.float64))
    return x.requires_grad_(), gt


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Of all parameters, relative to the largest of each tensor."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
