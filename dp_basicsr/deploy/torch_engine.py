"""Run networks in torch, on any device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dp_basicsr.archs.blocks import to_channels_last
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.choices import Precision
from dp_basicsr.deploy.engine import Engine
from dp_basicsr.errors import UserError
from dp_basicsr.utils.tiles import Floats

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SMALLEST_AUTO_TILE = 64
LARGEST_AUTO_TILE = 1024
# Peak memory of RRDBNet for a pixel of the tile, in feature maps of the output's size: 2.5 measured on a CPU, and room
# for a GPU's work space.
MAPS_AT_PEAK = 4


class TorchEngine(Engine):
    """Runs a network in torch; its module is moved to the device."""

    layout = torch.channels_last

    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        """Take ``auto`` (CUDA, then MPS, then CPU) or torch's name of a device."""
        assert network is not None
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        self.device = find_device(device)
        self.module = network.module.to(self.device)
        to_channels_last(self.module)
        if self.device.type == "cuda":
            # Memory is proportional to the channels between the layers: those that the first convolution gives.
            features = next((layer.out_channels for layer in self.module.modules() if isinstance(layer, nn.Conv2d)), 64)
            # A part of the free memory stays for others; a float has 4 bytes.
            pixels = 0.7 * torch.cuda.mem_get_info(self.device)[0] / (MAPS_AT_PEAK * features * network.scale**2 * 4)
            self.tile = min(max(int(pixels**0.5) // 32 * 32, SMALLEST_AUTO_TILE), LARGEST_AUTO_TILE)
        return network, f"on {self.device}, {self.precision}"

    @torch.inference_mode()
    def run(self, images: Floats) -> Floats:
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, memory_format=self.layout)
        try:
            with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
                return self.module(tensor).float().cpu().numpy()  # type: ignore[no-any-return]
        except RuntimeError as error:
            if self.layout == torch.contiguous_format or "view size" not in str(error):
                raise
        # IPT needs its tensors contiguous.
        self.layout = torch.contiguous_format
        self.module._apply(torch.Tensor.contiguous)
        return self.run(images)

    def after_fork(self) -> None:
        torch.set_num_threads(1)

    def free_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def native_precision(device: str) -> Precision:
    """Return bf16 if the device has instructions for it, otherwise fp32."""
    kind = find_device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if kind == "cpu" and cpu.is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def find_device(name: str) -> torch.device:
    """Return the device called ``name``, or raise a UserError; ``auto`` is the first there is of CUDA, MPS and CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        # torch knows the names of devices that this machine does not have.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch without CUDA asserts; without MPS it lists all that it has in the second sentence.
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"--device {name}: not there ({reason}); expected auto, cpu, cuda, cuda:1 or mps") from error
    return device


class _RefuseBranches(TorchDispatchMode):
    """Fail where a network decides by a value what to compute: a conversion keeps the decision for one image."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise ValueError("what it computes depends on the image, as with experts, of which it would keep one")
        return func(*args, **kwargs or {})


def difference_from_torch(network: OpenedNetwork, engine: Engine, shapes: Iterable[tuple[int, int, int]]) -> float:
    """Return how far an engine is from torch on random images, relative to the largest value; NaN if either gives it.

    ``shapes`` are (N, H, W), enlarged to sizes that the network takes. A result of another shape, and branches that
    depend on the image, are a ValueError.
    """
    generator = torch.Generator().manual_seed(0)
    worst = torch.zeros(())
    for batch, height, width in shapes:
        least = 0 if network.size.maximum else network.size.minimum - 1  # all of them would be of the smallest size
        shape = (batch, network.channels, *network.size.fit(height + least, width + least))
        image = torch.rand(shape, generator=generator, dtype=torch.float32)
        with torch.no_grad(), _RefuseBranches():  # inference mode would hide it
            expected = network.module(image)
        result = torch.from_numpy(engine.run(image.numpy()))
        if result.shape != expected.shape:
            raise ValueError(f"{tuple(result.shape)} instead of {tuple(expected.shape)}")
        # torch's maximum keeps a NaN, Python's does not.
        worst = torch.maximum(worst, (expected - result).abs().max() / expected.abs().max().clamp(min=1e-12))
    return float(worst)
