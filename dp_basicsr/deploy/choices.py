"""Choices of the upscaling and export commands. This module imports nothing heavy."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.utils.arguments import NETWORKS

EngineName = Literal["auto", "openvino", "onnxruntime", "torch"]
AlphaMode = Literal["model", "bicubic", "data", "drop"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["fp32", "bf16", "fp16", "auto"]

# Pixels that neighbouring tiles share. docs/inference.md has the seams that this leaves.
OVERLAP = 32

# The networks in the box, in ESRGAN's order: trained with L1, and continued with Dual Perceptual Loss. Their cards are
# beside them.
BOX = [NETWORKS / "compact_x4_l1.safetensors", NETWORKS / "compact_x4_dp.safetensors"]
BOX_ALPHA = 0.5  # share of the second: beyond it a faint grid shows on the photographs of results.md's dev set
BOX_LIMIT = "the networks in the box know clean images reduced by bicubic x4 only, not JPEG, noise or blur"


@dataclass(frozen=True)
class EngineKind:
    """An engine: all that commands, messages and docs say of it."""

    target: str  # its class, an ``Engine`` that writes and runs files; empty for torch
    file: str  # name of a converted network in the cache
    packages: tuple[str, ...]  # what it imports
    extra: str  # of this package, which installs them
    runs_on: str  # devices

    def load(self) -> Any:
        """Return its class."""
        return pkgutil.resolve_name(f"dp_basicsr.deploy.{self.target}")


# The fastest first (docs/inference.md has the times).
ENGINES = {
    "openvino": EngineKind("openvino_engine:OpenVinoEngine", "network.xml", ("openvino",), "openvino", "the CPU"),
    "onnxruntime": EngineKind(
        "onnx_engine:OnnxEngine", "network.onnx", ("onnxruntime", "onnx", "onnxscript"), "export", "the CPU"
    ),
    "torch": EngineKind("", "", (), "", "CPU, CUDA, MPS"),
}
# Runs its files alone; no network is converted for it.
_NCNN = EngineKind("ncnn_engine:NcnnEngine", "", ("ncnn", "pnnx"), "export", "the CPU")


@dataclass(frozen=True)
class ExportFormat:
    """A format of exported networks: all that commands, checks, cards and docs say of it."""

    suffixes: tuple[str, ...]  # of the files that an export writes
    engine: EngineKind | None  # writes and runs them; None for weights, which torch reads
    # Largest difference from torch allowed, relative to the output's largest value: sums in another order, ncnn's
    # Winograd transform. 0: the same bits.
    tolerance: float
    platform: str  # OpenModelDB's; empty if it does not list such files
    content: str  # what is in the files
    check: str  # how they are checked
    use: str  # how a program runs ``{file}``, in Markdown
    programs: str  # which others open it, in Markdown

    def files(self, output: Path) -> list[Path]:
        """Return the files that an export writes; for ncnn ``net.param`` and ``net.bin``, if ``output`` is ``net``."""
        if len(self.suffixes) == 1:
            return [output]
        base = output.with_suffix("") if output.suffix in self.suffixes else output
        return [base.with_name(base.name + suffix) for suffix in self.suffixes]

    def card(self, output: Path) -> Path:
        """Return the card's file; ncnn's two files share the name without a suffix."""
        name = output.stem if len(self.suffixes) > 1 and output.suffix in self.suffixes else output.name
        return output.with_name(f"{name}.md")


_IN_TORCH = """```python
from pathlib import Path

from dp_basicsr.archs import load_network

net = load_network([Path("{file}")]).module  # (N, {channels}, H, W), {colours} in [0, 1]
```"""
_BY_SPANDREL = "chaiNNer, ComfyUI and every program on spandrel open it."

EXPORTS = {
    "safetensors": ExportFormat(
        (".safetensors",), None, 0, "pytorch", "BasicSR's names; metadata as text", "read back, same bits",
        _IN_TORCH, _BY_SPANDREL,
    ),
    "pth": ExportFormat(
        (".pth",), None, 0, "pytorch", "`params` as BasicSR reads it, and strings and numbers", "read back, same bits",
        _IN_TORCH, _BY_SPANDREL,
    ),
    "onnx": ExportFormat(
        (".onnx",), ENGINES["onnxruntime"], 1e-5, "onnx", "dynamic batch, height, width; metadata",
        "onnxruntime at 1 x 1, 16 x 16, 17 x 23 and a batch, 1e-5 relative",
        """```python
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{file}")
image = np.random.rand{shape}.astype(np.{dtype})  # {colours} in [0, 1]
(result,) = session.run(None, {{"image": image}})
```""",
        "Programs that run ONNX models (chaiNNer among them) open it; batch, height and width are free.",
    ),
    "ncnn": ExportFormat(
        (".param", ".bin"), _NCNN, 1e-4, "",
        "`net_g.param` and `net_g.bin`, by pnnx; input `data`, output `output`",
        "ncnn at the same sizes, 1e-4 relative",
        "Programs that run ncnn take both files, `{file}` and the `.bin` beside it.",
        "Upscayl: put both files into a folder called `models`, and choose it under Settings, *Add Custom Models*; "
        "it reads the scale from the name (`x2`, `x3`, otherwise 4). chaiNNer: *Load Model* under NCNN.",
    ),
}  # fmt: skip
