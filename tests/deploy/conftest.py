"""Small generators with random weights, and files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dp_basicsr.archs.from_file_arch import build_network
from dp_basicsr.checkpoint.network_spec import NetworkSpec

import pytest
import torch
from torch import nn

MakeNetwork = Callable[..., nn.Module]


def make_network(
    arch: str = "RRDBNetDP", scale: int = 4, num_feat: int = 8, num_grow_ch: int = 32, num_block: int = 2
) -> nn.Module:
    """A generator with random weights whose output looks like an image: its mean and contrast are those of its input.

    BasicSR's initialisation gives output near 0, which would hide differences behind clipping.
    """
    torch.manual_seed(scale)
    spec = NetworkSpec(arch, scale, num_feat, num_block, 0 if arch == "MSRResNet" else num_grow_ch)  # type: ignore[arg-type]
    net = build_network(spec).to_empty(device="cpu").eval()
    for name, parameter in net.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim == 4 else 1
        parameter.data = torch.randn(parameter.shape) * (0.9 / fan_in**0.5 if parameter.ndim == 4 else 0.01)
        if name == "conv_last.bias":
            parameter.data += 0.5
    return net.requires_grad_(False)


@pytest.fixture
def network_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes BasicSR's kind of file of a small network (see ``make_network``)."""

    def write(name: str = "net_g_latest.pth", **size: str | int) -> Path:
        path = tmp_path / name
        torch.save({"params": make_network(**size).state_dict()}, path)  # type: ignore[arg-type]
        return path

    return write
