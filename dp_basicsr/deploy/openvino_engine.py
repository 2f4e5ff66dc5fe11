"""Run networks in OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dp_basicsr.deploy.engine import Engine
from dp_basicsr.utils.tiles import Floats

import numpy as np

if TYPE_CHECKING:
    from dp_basicsr.deploy.loaded_network import LoadedNetwork

    import openvino

POLL_MS = 200  # how often a signal is looked for while the network runs
# OpenVINO's names of our precisions. Its default would be bf16 on some CPUs.
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    It would send every import and conversion to its makers, from a process that can keep the program from exiting when
    there is no network.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return importlib.import_module("openvino")


@functools.cache
def core() -> openvino.Core:
    """Return the OpenVINO of this process, which is never freed.

    Its CPU plugin gives the thread that loads it a stack for signals. Freed in another thread, it would take that stack
    away, and the next signal would end the process with a segmentation fault (OpenVINO 2026.4).
    """
    return import_openvino().Core()  # type: ignore[no-any-return]


def open_network(folder: Path, *info: Any) -> Engine:
    """Open what ``convert`` has written; see ``Engine`` for ``info``."""
    return OpenVinoEngine(folder, *info)


class OpenVinoEngine(Engine):
    """Runs ``folder/network.xml``, compiled for this CPU; the compiled form is kept in the folder."""

    def __init__(self, folder: Path, *info: Any) -> None:
        super().__init__(*info)
        self.folder = folder
        self._compile()

    def _compile(self) -> None:
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": str(self.folder),
        }
        if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
            properties["INFERENCE_NUM_THREADS"] = int(os.environ["OMP_NUM_THREADS"])
        self.request = core().compile_model(self.folder / "network.xml", "CPU", properties).create_infer_request()

    def run(self, images: Floats) -> Floats:
        """See ``Engine.run``."""
        self.request.start_async([np.ascontiguousarray(images)])
        while not self.request.wait_for(POLL_MS):  # so that Ctrl-C is heard within a tile
            pass
        return np.array(self.request.get_output_tensor().data, np.float32)

    def use_fp32(self) -> None:
        """See ``Engine.use_fp32``."""
        super().use_fp32()
        self._compile()


def convert(network: LoadedNetwork, folder: Path) -> None:
    """Write ``folder/network.xml`` and ``.bin``, for any batch, height and width."""
    import torch

    openvino = import_openvino()
    example = torch.rand(1, network.channels, *network.size.fit(16, 16))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and is what OpenVINO converts fastest
        traced = torch.jit.trace(network.module, example, check_trace=False)
        shape = openvino.PartialShape([-1, network.channels, -1, -1])
        model = openvino.convert_model(traced, example_input=example, input=[shape])
    openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)


def supports(precision: str) -> bool:
    """Return whether this CPU has instructions for a precision."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision == "fp32" or CAPABILITIES[precision] in capabilities
