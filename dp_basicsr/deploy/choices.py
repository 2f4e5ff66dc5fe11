"""Choices of the upscaling and export commands. This module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

AlphaMode = Literal["model", "bicubic", "drop"]
ExportFormat = Literal["safetensors", "pth", "onnx"]
Precision = Literal["fp32", "bf16", "fp16"]

# Suffix of a written image -> Pillow's name of the format.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
READ_SUFFIXES = (*FORMATS, ".gif", ".apng")  # results of the last two are PNG files
QUALITY = 95
# Pixels that neighbouring tiles share. docs/inference.md has the seams that this leaves.
OVERLAP = 32
