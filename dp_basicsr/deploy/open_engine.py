"""Choose the engine for a network and open it; converted networks are kept in the user's cache folder.

A network that is in the cache is opened without importing torch.
"""

from __future__ import annotations

import contextlib
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

from dp_basicsr.checkpoint.opened_network import OpenedNetwork, as_paths, is_converted
from dp_basicsr.deploy.choices import ENGINES, EXPORTS, EngineKind, EngineName, Precision, PrecisionChoice
from dp_basicsr.deploy.engine import Engine, try_room
from dp_basicsr.errors import UserError, first_line, is_out_of_memory
from dp_basicsr.options import USED_OPTIONS
from dp_basicsr.utils.input_size import InputSize

import numpy as np

TOLERANCE = 1e-4  # largest difference from torch on a random image, relative to the largest value
PROBES = ((24, 40), (33, 17))
KEPT = 16  # converted networks
FORM = 7  # of a cache entry; a change invalidates all

_PASSING = (UserError, OSError, ImportError)  # what may be otherwise the next time

Load = Callable[[], OpenedNetwork]
Warn = Callable[[str], None]


class _RefusedError(Exception):
    """An engine cannot run a network, as an earlier attempt has shown."""


def open_engine(
    paths: str | Path | Sequence[str | Path],
    *,
    engine: EngineName = "auto",
    alpha_interp: float | None = None,
    scale: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "fp32",
    warn: Warn = warnings.warn,
) -> Engine:
    """Open a model in an engine.

    Args:
        paths: One file, or two files of weights, see ``load_network``. ONNX and ncnn files run in onnxruntime and ncnn.
        engine: ``auto`` takes on a CPU the fastest one that is installed and equals torch within ``TOLERANCE``,
            otherwise torch; if it fails later, ``Upscaler`` goes on with the next one.
        alpha_interp: See ``load_network``.
        scale: See ``load_network``.
        device: ``auto`` (CUDA, then MPS, then CPU) or torch's name. Engines other than torch run on the CPU.
        precision: See ``Engine``; ``auto`` is bf16 where the device computes in it, otherwise fp32.
        warn: Called with a warning when an engine cannot be used.

    Raises:
        UserError: See ``load_network``; or an engine that was asked for by name cannot be used.
    """
    files = as_paths(paths)
    device = "cpu" if device.startswith("cpu:") else device  # the same to torch, and unknown to others
    if len(files) == 1 and alpha_interp is None and is_converted(files[0]):
        suffix = files[0].suffix.lower()
        if engine != "auto" and (engine, suffix) != ("onnxruntime", ".onnx"):
            raise UserError(f"--engine {engine}: ONNX and ncnn files run in their own engine: leave it out")
        if precision not in ("fp32", "auto"):
            text = "ONNX and ncnn files run in the precision that they were exported in"
            raise UserError(f"--precision {precision}: {text}")
        kind = next(record.engine for record in EXPORTS.values() if record.engine and suffix in record.suffixes)
        opened: Engine = kind.load()(None, device, "fp32", warn, files[0])
        opened.network.require_scale(scale)
        return opened

    @functools.cache
    def load() -> OpenedNetwork:
        # Takes seconds, as it imports torch.
        from dp_basicsr.archs import load_network

        return load_network(files, alpha_interp=alpha_interp, scale=scale)

    names = iter(_candidates(engine, device))

    def open_next() -> Engine:
        for name in names:
            try:
                key = _key(name, files, alpha_interp, scale)
                opened = _open_converted(name, key, load, files[-1].name, precision, warn)
                opened.open_next = open_next if engine == "auto" else None
                load.cache_clear()  # frees the network
                return opened
            except Exception as error:
                # Each package has its own; a broken one may raise any when it is imported.
                if isinstance(error, (UserError, OSError)):
                    # Raises an error where the model is at fault, not the engine.
                    load()
                reason = first_line(error)[:200]
                if engine != "auto":
                    raise UserError(f"--engine {name} cannot be used: {reason}; give --engine auto or torch") from error
                warn(f"{name} cannot be used ({reason}): trying the next engine")
        network = load()
        from dp_basicsr.deploy.torch_engine import TorchEngine, native_precision

        return TorchEngine(network, device, native_precision(device) if precision == "auto" else precision, warn)

    return open_next()


def cache_root() -> Path | None:
    """Return the folder of converted networks; None where there is no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dp_basicsr"
    except RuntimeError:
        return None


def _candidates(engine: EngineName, device: str) -> list[str]:
    """Return the names of engines to try before torch."""
    if engine == "torch":
        return []
    if engine != "auto":
        if device not in ("auto", "cpu"):
            raise UserError(f"--engine {engine} runs on the CPU: give --device cpu, or --engine torch")
        if not _is_installed(engine):
            raise UserError(f"--engine {engine} is not installed: pip install 'dp_basicsr[{ENGINES[engine].extra}]'")
        return [engine]
    # Importing torch and asking it for a GPU takes seconds.
    devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    may_have_gpu = sys.platform != "linux" or any(Path(name).exists() for name in devices)
    on_cpu = device == "cpu" or (device == "auto" and not may_have_gpu)
    return [name for name in ENGINES if on_cpu and name != "torch" and _is_installed(name)]


def _is_installed(engine: str) -> bool:
    packages = ENGINES[engine].packages
    # None among the modules forbids an import, as this package does with OpenVINO's telemetry.
    return all(sys.modules.get(name, ...) is not None and importlib.util.find_spec(name) for name in packages)


def _key(engine: str, paths: Sequence[Path], alpha_interp: float | None, scale: int | None) -> str:
    """Return what identifies a conversion: weights, what tells their scale, the versions that convert, and the CPU."""
    package = ENGINES[engine].packages[0]
    # A home may be shared by CPUs, of which one cannot run what another has checked.
    cpu = np.show_config("dicts").get("SIMD Extensions")  # type: ignore[union-attr]
    known = (FORM, engine, version(package), version("torch"), cpu, alpha_interp, scale)
    digest = hashlib.sha256(repr(known).encode())
    for path in paths:
        if not path.is_file():
            # Reading a pipe would block.
            raise FileNotFoundError(path)
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        # The options of the run may tell the scale of RRDBNetDP, see ``options_of_run``.
        run = path.resolve().parent
        if run.name == "models":
            for file in sorted([*run.parent.glob("*.yml"), *run.parent.glob(USED_OPTIONS)]):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _open_converted(name: str, key: str, load: Load, file: str, precision: PrecisionChoice, warn: Warn) -> Engine:
    """Open a network from the cache; convert, check and store it first if it is not there.

    Raises any exception if the engine lacks the precision, cannot run the network, or gives other values.
    """
    kind, root = ENGINES[name], cache_root()
    stored = root and root / f"{name}-{key}"
    make = kind.load()
    if precision == "auto":
        precision = "bf16" if make.supports("bf16") else "fp32"
    elif not make.supports(precision):
        raise RuntimeError(f"it does not compute in {precision} on this CPU")

    def open_entry(folder: Path, precision: Precision) -> Engine:
        facts = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        if "refused" in facts:
            raise _RefusedError(facts["refused"])
        network = OpenedNetwork(**facts | {"file": file, "size": InputSize(**facts["size"])})
        return make(network, "cpu", precision, warn, folder / kind.file)  # type: ignore[no-any-return]

    if stored:
        with contextlib.suppress(OSError):
            # The entries used last are kept; a cache that may only be read stays as it is.
            os.utime(stored)
        try:
            return open_entry(stored, precision)
        except _RefusedError:
            raise
        except Exception:
            # Not there, damaged, or removed by another process: converted again.
            shutil.rmtree(stored, ignore_errors=True)
    network, start = load(), time.monotonic()
    try:
        if root is None:
            raise OSError("there is no home folder")
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=root, prefix=".draft-", ignore_cleanup_errors=True)
        try_room(network, scratch.name)
    except OSError as error:
        warn(f"converted networks cannot be kept ({error}): name a folder for them in XDG_CACHE_HOME")
        root, scratch = None, tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    entry = Path(scratch.name) / "entry"
    _convert(network, kind, entry)
    if root and stored:
        # Another process may have stored the same network meanwhile, and a rename replaces no folder.
        shutil.rmtree(stored, ignore_errors=True)
        entry = entry.rename(stored)
        with contextlib.suppress(OSError):  # another process may do the same
            entries = sorted(root.glob("*-*/network.json"), key=lambda facts: facts.parent.stat().st_mtime)
            # A process that is killed leaves its draft; one of today may be at work.
            killed = [draft for draft in root.glob(".draft-*") if time.time() - draft.stat().st_mtime > 86400]
            for old in [facts.parent for facts in entries[:-KEPT]] + killed:
                shutil.rmtree(old, ignore_errors=True)
    engine = open_entry(entry, precision)
    # Deleted with the engine.
    engine.scratch = scratch
    engine.title += f" (converted in {time.monotonic() - start:.0f} s{f', kept in {root}' if root else ''})"
    return engine


def _write_checked(network: OpenedNetwork, kind: EngineKind, folder: Path) -> None:
    from dp_basicsr.deploy.torch_engine import difference_from_torch

    from torch.random import fork_rng

    make, file = kind.load(), folder / kind.file
    with fork_rng(devices=[]):
        make.write(network, file, {})
    # Always in fp32: in lower precision the difference would not tell a wrong conversion.
    batch = 3 if network.channels == 1 else 1  # its colours
    difference = difference_from_torch(network, make(network, path=file), [(batch, *sides) for sides in PROBES])
    if not difference <= TOLERANCE:
        raise RuntimeError(f"it differs from torch by {difference:.1e} on a probe")


def _convert(network: OpenedNetwork, kind: EngineKind, folder: Path) -> None:
    """Write a converted network, after a check of its values, and what describes it: or why it cannot be converted."""
    from torch.nn import ReLU

    facts = dataclasses.asdict(dataclasses.replace(network, module=None))
    folder.mkdir()
    try:
        _write_checked(network, kind, folder)
    except Exception as error:
        if isinstance(error, _PASSING) or is_out_of_memory(error):
            raise
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as other:
            # An engine that cannot run one layer is at fault itself, which its installation may mend.
            _write_checked(OpenedNetwork("", "", 1, "", module=ReLU()), kind, Path(other))
        # Remembered, because the attempt may take longer than the images.
        shutil.rmtree(folder)
        folder.mkdir()
        facts = {"refused": first_line(error)}
    (folder / "network.json").write_text(json.dumps(facts), encoding="utf-8")
