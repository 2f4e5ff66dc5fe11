"""An exported ONNX file as a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize

import numpy as np
import torch
from torch import Tensor, nn

# Side of the image that tells the scale, pixels: networks that fold it by 2 or 4 take it, too.
PROBE = 8


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
        raise UserError("ONNX files need onnxruntime: pip install 'dp_basicsr[export]'") from error
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
        notes = dict(session.get_modelmeta().custom_metadata_map)
        known: dict[str, Any] = {name: int(notes[name]) for name in asdict(InputSize()) if name in notes}
        size = InputSize(**known)
        channels = 1 if session.get_inputs()[0].shape[1:2] == [1] else 3
        image = torch.zeros(1, channels, *size.fit(PROBE, PROBE))
        module = OnnxModule(session)
        output = module(image)
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"model {path}: onnxruntime cannot run it: {str(error).splitlines()[0]}") from error
    scale = output.shape[-1] // image.shape[-1]
    if output.shape != (1, channels, scale * image.shape[2], scale * image.shape[3]) or scale < 1:
        raise UserError(
            f"model {path}: expected as many colours out as in, RGB or gray, got {tuple(output.shape)} for "
            f"{tuple(image.shape)}"
        )
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    description = f"ONNX x{scale} by onnxruntime, {provider}"
    return LoadedNetwork(
        module,
        scale,
        f"{path.name}: {description}",
        notes.get("arch", "ONNX"),
        description,
        size=size,
        channels=channels,
        num_feat=int(notes.get("num_feat", 64)),
        notes=notes,
        runtime="onnxruntime",
    )
