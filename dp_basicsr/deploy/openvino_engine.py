"""OpenVINO's files, on the CPU: converted from torch for the cache."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.engine import Engine, limit_threads
from dp_basicsr.errors import import_optional
from dp_basicsr.utils.tiles import Floats

import numpy as np

if TYPE_CHECKING:
    import openvino

POLL_MS = 200  # how often a signal is looked for while the network runs
# OpenVINO's names of our precisions. Its default would be bf16 on some CPUs.
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    It would send every import and conversion to its makers, from a process that can keep the program from exiting when
    there is no network.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return import_optional("openvino")


@functools.cache
def core() -> openvino.Core:
    """Return the OpenVINO of this process, which is never freed.

    Its CPU plugin gives the thread that loads it a stack for signals. Freed in another thread, it would take that stack
    away, and the next signal would end the process with a segmentation fault (OpenVINO 2026.4).
    """
    return import_openvino().Core()  # type: ignore[no-any-return]


class OpenVinoEngine(Engine):
    """Runs ``path`` (.xml) compiled for this CPU; the compiled form is kept beside it where that can be written."""

    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        assert network is not None, "its files do not tell what they are"
        self._compile()
        return network, f"by openvino {import_openvino().__version__.partition('-')[0]}, on {device}, {self.precision}"

    def _compile(self) -> None:
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            # What it keeps for each size of image: by default 5000 entries, 0.5 GB after 700 sizes.
            "CPU_RUNTIME_CACHE_CAPACITY": 300,
        }
        if os.access(self.path.parent, os.W_OK):
            # Of a folder's compiled forms OpenVINO 2026.4 takes one of fp16 for fp32, too, and the other way round.
            properties["CACHE_DIR"] = str(self.path.parent / self.precision)
        if threads := limit_threads():
            properties["INFERENCE_NUM_THREADS"] = threads
        self.compiled = core().compile_model(self.path, "CPU", properties)

    def run(self, images: Floats) -> Floats:
        # One for each call, made in microseconds: threads may call at once, which a request refuses.
        request = self.compiled.create_infer_request()
        request.start_async([np.ascontiguousarray(images)])
        while not request.wait_for(POLL_MS):
            # So that Ctrl-C is heard within a tile.
            pass
        # A copy, because the request's memory goes with it.
        return np.array(request.get_output_tensor().data, np.float32)

    def use_fp32(self) -> None:
        super().use_fp32()
        self._compile()

    @staticmethod
    def write(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool = False) -> None:
        """Write ``path`` (.xml) and the .bin beside it."""
        import torch

        openvino = import_openvino()
        # Of a squeeze too small for its network; OpenVINO 2026.4 ends the process on it, without an error to report.
        if empty := [name for name, value in network.module.named_parameters() if not value.numel()]:
            raise RuntimeError(f"it takes no weights without values, as {empty[0]}")
        # Over half a window: GRL tries to reflect less, and catches that it fails; the tracer ends the process on it.
        side = max(16, network.size.step // 2 + 1)
        example = torch.rand(1, network.channels, *network.size.fit(side, side), dtype=torch.float32)
        with _holding_signals(), torch.inference_mode(), warnings.catch_warnings():
            # torch.jit is deprecated, and is what OpenVINO converts fastest.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network.module, example, check_trace=False)
            shape = openvino.PartialShape([-1, network.channels, -1, -1])
            model = openvino.convert_model(traced, example_input=example, input=[shape])
        # Its default is to round the weights to fp16.
        openvino.save_model(model, path, compress_to_fp16=False)

    @classmethod
    def supports(cls, precision: str) -> bool:
        return precision == "fp32" or precision.upper() in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@contextlib.contextmanager
def _holding_signals() -> Iterator[None]:
    """Let the handlers of signals wait: what they raise, as on Ctrl-C, OpenVINO takes for its conversion's failure."""
    came: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: handler for number in numbers if is_main and callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            handlers[number](number, None)
