"""Run networks in onnxruntime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.deploy.engine import Engine
from dp_basicsr.utils.tiles import Floats

import numpy as np

if TYPE_CHECKING:
    from dp_basicsr.deploy.loaded_network import LoadedNetwork


def open_network(folder: Path, *info: Any) -> Engine:
    """Open what ``convert`` has written; see ``Engine`` for ``info``."""
    return OnnxRuntimeEngine(folder, *info)


def supports(precision: str) -> bool:
    """Return whether it computes in a precision."""
    return precision == "fp32"


class OnnxRuntimeEngine(Engine):
    """Runs ``folder/network.onnx``, in fp32."""

    def __init__(self, folder: Path, *info: Any) -> None:
        import onnxruntime

        super().__init__(*info)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
            options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.session = onnxruntime.InferenceSession(
            str(folder / "network.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: Floats) -> Floats:
        """See ``Engine.run``."""
        name = self.session.get_inputs()[0].name
        return self.session.run(None, {name: np.ascontiguousarray(images)})[0]  # type: ignore[no-any-return]


def convert(network: LoadedNetwork, folder: Path) -> None:
    """Write ``folder/network.onnx``, for any batch, height and width."""
    from dp_basicsr.deploy.export import describe, export_network

    export_network(network, "onnx", folder / "network.onnx", describe(network, {}))
