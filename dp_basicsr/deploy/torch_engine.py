"""Run networks in torch, on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from dp_basicsr.deploy.choices import Precision
from dp_basicsr.deploy.engine import CPU_TILE, Engine
from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.errors import UserError
from dp_basicsr.utils.tiles import Floats

import numpy as np
import torch

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SMALLEST_AUTO_TILE = 64
LARGEST_AUTO_TILE = 1024
# Peak memory of RRDBNet for a pixel of the tile, in feature maps of the output's size: 2.5 measured on a CPU, and room
# for a GPU's work space.
MAPS_AT_PEAK = 4


class TorchEngine(Engine):
    """Runs a network in torch, or in the runtime that an ONNX or ncnn file has been opened with.

    Args:
        network: What to run. Its module is moved to the device.
        device: ``auto`` (CUDA, then MPS, then CPU) or torch's name.
        precision: See ``Engine``.
        warn: See ``Engine``.

    Raises:
        UserError: No such device or precision.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        device: str = "auto",
        precision: str = "fp32",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        in_torch = network.runtime == "torch"
        if not in_torch and precision != "fp32":
            raise UserError(
                f"--precision {precision}: ONNX and ncnn files run in the precision that they were exported in"
            )
        # Other runtimes chose their device when they opened the file, and take their images from the CPU.
        self.device = find_device(device if in_torch else "cpu")
        title = network.title + (f", on {self.device}, {precision}" if in_torch else "")
        super().__init__(title, network.scale, network.size, network.channels, precision, warn)
        self.module = network.module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tile = self._tile(network.num_feat) if in_torch else CPU_TILE

    @torch.inference_mode()
    def run(self, images: Floats) -> Floats:
        """See ``Engine.run``."""
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            return self.module(tensor).float().cpu().numpy()  # type: ignore[no-any-return]

    def free_memory(self) -> None:
        """See ``Engine.free_memory``."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tile(self, num_feat: int) -> int:
        if self.device.type != "cuda":
            return CPU_TILE
        free = torch.cuda.mem_get_info(self.device)[0]
        side = int((0.7 * free / (MAPS_AT_PEAK * num_feat * max(self.scale, 1) ** 2 * 4)) ** 0.5) // 32 * 32
        return min(max(side, SMALLEST_AUTO_TILE), LARGEST_AUTO_TILE)


def native_precision(device: str) -> Precision:
    """Return bf16 if the device has instructions for it, otherwise fp32."""
    kind = find_device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if kind == "cpu" and cpu.is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA, MPS or the CPU, the first that exists.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name}: not there ({reason}); expected auto, cpu, cuda, cuda:1 or mps") from error
    return device
