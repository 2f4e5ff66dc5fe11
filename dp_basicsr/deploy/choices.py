"""Choices of the upscaling and export commands. This module imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

AlphaMode = Literal["model", "bicubic", "drop"]
ExportFormat = Literal["safetensors", "pth", "onnx", "ncnn"]
EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["fp32", "bf16", "fp16", "auto"]

TORCH_STARTS = (b"PK\3\4", b"\x80")  # of a file of torch.save: a ZIP archive, before torch 1.6 a pickle

# Pixels that neighbouring tiles share. docs/inference.md has the seams that this leaves.
OVERLAP = 32


def exported_files(kind: ExportFormat, output: Path) -> list[Path]:
    """Return the files that an export writes: for ncnn ``net.param`` and ``net.bin``, where ``output`` is ``net``."""
    if kind != "ncnn":
        return [output]
    base = output.with_suffix("") if output.suffix in (".param", ".bin") else output
    return [base.with_name(base.name + suffix) for suffix in (".param", ".bin")]


def is_converted(path: Path) -> bool:
    """Return whether a model is ONNX or ncnn; a ``.bin`` may also be weights for torch (``pytorch_model.bin``)."""
    if path.suffix != ".bin" or not path.is_file():
        return path.suffix in (".onnx", ".param", ".bin")
    with path.open("rb") as file:
        return not file.read(4).startswith(TORCH_STARTS)
