"""An exported ONNX file as a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.errors import UserError

import numpy as np
import torch
from torch import Tensor, nn

# Every network here can take this size, the folded ones too: large enough to find the scale of a file without notes.
PROBE = (1, 3, 8, 8)


class OnnxModule(nn.Module):
    """Runs an onnxruntime session, of float32 or fp16, on (N, 3, H, W) float32 tensors; the result is on the CPU."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        self.input_name = session.get_inputs()[0].name
        self.dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, RGB in [0, 1]."""
        image = np.ascontiguousarray(x.cpu().numpy(), self.dtype)
        return torch.from_numpy(self.session.run(None, {self.input_name: image})[0]).float()


def open_onnx(path: Path, device: str = "cpu") -> LoadedNetwork:
    """Open an ONNX file: ours, or any with one input (N, 3, H, W) and one output of a whole multiple of its size.

    Raises:
        UserError: No such file, onnxruntime is not installed or not built for the device, or not such a network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX files need onnxruntime: pip install '.[export]'") from error
    if not path.is_file():
        raise UserError(f"model {path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: what it tells of its optimisations is no user's concern
    wanted = [] if device == "cpu" else ["CUDAExecutionProvider"]
    usable = [name for name in (*wanted, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    if device.startswith("cuda") and "CUDAExecutionProvider" not in usable:
        raise UserError(f"--device {device}: this onnxruntime has no CUDA: pip install onnxruntime-gpu")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=usable)
        module = OnnxModule(session)
        output = module(torch.zeros(PROBE))
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"model {path}: onnxruntime cannot run it: {str(error).splitlines()[0]}") from error
    scale = output.shape[-1] // PROBE[-1]
    if output.shape != (1, 3, scale * PROBE[2], scale * PROBE[3]) or scale < 1:
        raise UserError(f"model {path}: expected RGB in and RGB out, got {tuple(output.shape)} for {PROBE}")
    notes = dict(session.get_modelmeta().custom_metadata_map)
    title = f"{path.name}: ONNX x{scale} by onnxruntime, {session.get_providers()[0].removesuffix('ExecutionProvider')}"
    return LoadedNetwork(module, scale, int(notes.get("multiple", 1)), int(notes.get("num_feat", 64)), title, notes)
