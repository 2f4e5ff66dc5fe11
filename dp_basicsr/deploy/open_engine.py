"""Choose the engine for a network and open it; converted networks are kept in the user's cache folder.

A network that is in the cache is opened without importing torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dp_basicsr.deploy.choices import EngineName, PrecisionChoice, is_converted
from dp_basicsr.deploy.engine import Engine
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize

import numpy as np

if TYPE_CHECKING:
    from dp_basicsr.deploy.loaded_network import LoadedNetwork

# Engines that convert a network, the fastest first (docs/inference.md has the times), and the packages that each needs.
PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
EXTRAS = {"openvino": "openvino", "onnxruntime": "export"}
TOLERANCE = 1e-4  # largest difference from torch on a random image, relative to the largest value
PROBES = ((24, 40), (33, 17))
KEPT = 16  # converted networks
FORM = 2  # of a cache entry; a change invalidates all

Load = Callable[[], "LoadedNetwork"]


class EngineError(Exception):
    """An engine cannot run a network."""


def open_engine(
    paths: Sequence[Path],
    *,
    engine: EngineName = "auto",
    alpha_interp: float | None = None,
    scale: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "fp32",
    warn: Callable[[str], None] = warnings.warn,
) -> Engine:
    """Open a model in an engine.

    Args:
        paths: See ``load_network``. ONNX and ncnn files run in onnxruntime and ncnn.
        engine: ``auto`` takes on a CPU the fastest one that is installed and equals torch within ``TOLERANCE``,
            otherwise torch.
        alpha_interp: See ``load_network``.
        scale: See ``load_network``.
        device: See ``TorchEngine``. The other engines run on the CPU.
        precision: See ``Engine``; ``auto`` is bf16 where the device computes in it, otherwise fp32.
        warn: Called with a warning when an engine cannot be used.

    Raises:
        UserError: See ``load_network``; or an engine that was asked for by name cannot be used.
    """

    @functools.cache
    def load() -> LoadedNetwork:
        from dp_basicsr.deploy.network import load_network  # takes seconds: torch

        return load_network(paths, alpha_interp=alpha_interp, scale=scale, device=device)

    converted = any(is_converted(path) for path in paths)
    if converted and engine != "auto":
        raise UserError(
            f"--engine {engine}: ONNX and ncnn files run in their own engine; give the .pth or .safetensors"
        )
    for name in [] if converted else _candidates(engine, device):
        try:
            return _open_converted(name, _key(name, paths, load, alpha_interp, scale), load, paths[-1], precision, warn)
        except EngineError as error:
            if engine != "auto":
                raise UserError(f"--engine {name} cannot be used: {error}; give --engine auto or torch") from error
            warn(f"{name} cannot be used ({error}): trying the next engine")
    network = load()
    from dp_basicsr.deploy.torch_engine import TorchEngine, native_precision

    return TorchEngine(network, device, native_precision(device) if precision == "auto" else precision, warn)


def cache_root() -> Path:
    """Return the folder of converted networks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dp_basicsr"


def _candidates(engine: EngineName, device: str) -> list[str]:
    """Return the names of engines to try before torch."""
    if engine == "torch":
        return []
    if engine != "auto":
        if device not in ("auto", "cpu"):
            raise UserError(f"--engine {engine} runs on the CPU: give --device cpu, or --engine torch")
        if not _is_installed(engine):
            raise UserError(f"--engine {engine} is not installed: pip install 'dp_basicsr[{EXTRAS[engine]}]'")
        return [engine]
    on_cpu = device == "cpu" or (device == "auto" and not _may_have_gpu())
    return [name for name in PACKAGES if on_cpu and _is_installed(name)]


def _is_installed(engine: str) -> bool:
    return all(sys.modules.get(name, ...) is not None and importlib.util.find_spec(name) for name in PACKAGES[engine])


def _may_have_gpu() -> bool:
    """Return whether it is worth to import torch and ask for a GPU."""
    devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return sys.platform != "linux" or any(Path(name).exists() for name in devices)


def _key(engine: str, paths: Sequence[Path], load: Load, alpha_interp: float | None, scale: int | None) -> str:
    """Return what identifies a conversion: weights, what tells their scale, and the engine's version."""
    digest = hashlib.sha256(repr((FORM, engine, version(PACKAGES[engine][0]), alpha_interp, scale)).encode())
    try:
        for path in paths:
            if not path.is_file():
                load()  # raises
            digest.update(hashlib.sha256(path.read_bytes()).digest())
            # The option file of the run may tell the scale of RRDBNetDP, see ``run_options``.
            run = path.resolve().parent
            for file in sorted(run.parent.glob("*.yml")) if run.name == "models" else []:
                digest.update(file.read_bytes())
    except OSError:
        load()  # raises
        raise
    return digest.hexdigest()[:32]


def _open_converted(
    name: str, key: str, load: Load, path: Path, precision: PrecisionChoice, warn: Callable[[str], None]
) -> Engine:
    """Open a network from the cache; convert, check and store it first if it is not there.

    Raises:
        EngineError: The engine does not support the precision, cannot run the network, or gives other values.
        UserError: See ``load_network``.
    """
    supported = _supported(name, precision)
    folder = cache_root() / f"{name}-{key}"
    if (folder / "network.json").is_file():
        try:
            os.utime(folder)
            return _open(name, folder, path, supported, warn)
        except Exception:  # damaged, or removed by another process: converted again
            shutil.rmtree(folder, ignore_errors=True)
    network = load()
    start = time.monotonic()
    try:
        _store(name, network, folder)
        engine = _open(name, folder, path, supported, warn)
    except Exception as error:  # each package has its own
        raise EngineError(str(error).strip().partition("\n")[0][:200] or type(error).__name__) from error
    engine.title += f" (converted in {time.monotonic() - start:.0f} s, kept in {cache_root()})"
    return engine


def _store(name: str, network: LoadedNetwork, folder: Path) -> None:
    """Convert a network, compare it with torch, and put it into the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".draft-", ignore_cleanup_errors=True) as place:
        draft = Path(place) / "entry"
        draft.mkdir()
        _module(name).convert(network, draft)
        facts = {
            "description": network.title.partition(": ")[2],
            "scale": network.scale,
            "size": dataclasses.astuple(network.size),
            "channels": network.channels,
        }
        (draft / "network.json").write_text(json.dumps(facts), encoding="utf-8")
        difference = _difference(network, _open(name, draft, Path("network"), "fp32", warnings.warn))
        if not difference <= TOLERANCE:
            raise EngineError(f"it differs from torch by {difference:.1e} on a probe")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    entries = sorted(folder.parent.glob("*-*/network.json"), key=lambda file: file.parent.stat().st_mtime)
    for file in entries[:-KEPT]:
        shutil.rmtree(file.parent, ignore_errors=True)


def _difference(network: LoadedNetwork, engine: Engine) -> float:
    from dp_basicsr.deploy.torch_engine import TorchEngine

    exact = TorchEngine(network, "cpu")
    random = np.random.default_rng(0)
    worst = 0.0
    for height, width in PROBES:
        image = random.random((1, 3, height, width), np.float32)
        expected = exact(image)
        worst = max(worst, float(np.abs(engine(image) - expected).max() / max(np.abs(expected).max(), 1)))
    return worst


def _open(name: str, folder: Path, path: Path, precision: str, warn: Callable[[str], None]) -> Engine:
    facts = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    title = f"{path.name}: {facts['description']}, by {name} {version(PACKAGES[name][0])}, on cpu, {precision}"
    info = (title, facts["scale"], InputSize(*facts["size"]), facts["channels"], precision, warn)
    return _module(name).open_network(folder, *info)  # type: ignore[no-any-return]


def _supported(name: str, precision: PrecisionChoice) -> str:
    """Return the precision to compute in.

    Raises:
        EngineError: The engine or the CPU does not have it.
    """
    supports = _module(name).supports
    if precision == "auto":
        return "bf16" if supports("bf16") else "fp32"
    if not supports(precision):
        raise EngineError(f"it does not compute in {precision} on this CPU")
    return precision


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"dp_basicsr.deploy.{name}_engine")
