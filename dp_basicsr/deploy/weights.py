"""Reading a generator's weights from whatever form they come in, under BasicSR's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.utils.safe_load import load

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

# Where trainers put the state_dict in a file, the averaged weights first: BasicSR (params_ema, params), others.
CONTAINERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")

# What wrappers put before every name: DistributedDataParallel, torch.compile, models that hold several networks.
PREFIXES = ("module.", "_orig_mod.", "netG.", "net_g.", "generator.")

# The names of the original ESRGAN and SRResNet code (2018) -> BasicSR's. The oldest form, model.N, has a function.
RENAMED = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^recon_trunk\.", "body."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^HRconv\.", "conv_hr."),
)


@dataclass
class Weights:
    """A generator's weights.

    Attributes:
        state: BasicSR's names -> float32 tensors on the CPU.
        path: the file they come from.
        notes: what the file says about itself besides (text; our exports: scale, arch, provenance).
    """

    state: StateDict
    path: Path
    notes: dict[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Read weights from ``.pth`` (BasicSR's, ESRGAN's, bare; averaged weights preferred) or ``.safetensors``.

    No code from the file is run (``weights_only=True``).

    Raises:
        UserError: No such file, damaged, no generator's weights, or values that are not finite.
    """
    if not path.is_file():
        raise UserError(f"model {path}: no such file")
    _refuse_impostors(path)
    content, notes = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = rename_keys(_strip_prefixes(_as_state_dict(content, path)))
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"model {path}: {len(broken)} tensors hold NaN or infinity ({shorten(broken, 1)}): training failed"
        )
    return Weights(state, path, notes)


def interpolate(first: Weights, second: Weights, alpha: float) -> Weights:
    """Network interpolation (ESRGAN, section 3.4): ``(1 - alpha) * first + alpha * second``, weight by weight.

    Raises:
        UserError: ``alpha`` is not within [0, 1], or the two are not weights of one network.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha_interp: expected a number from 0 (first model) to 1 (second model), got {alpha}")
    differences = compare_shapes(first.state, second.state)
    if differences:
        raise UserError(f"{first.path} and {second.path} cannot be interpolated, the second has {differences}")
    state = {name: torch.lerp(value, second.state[name], alpha) for name, value in first.state.items()}
    note = {"interpolation": f"{1 - alpha:g} * {first.path.name} + {alpha:g} * {second.path.name}"}
    return Weights(state, second.path, {**first.notes, **second.notes, **note})


def compare_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What ``found`` has that differs from ``expected`` by name or shape, in words; empty where they agree."""
    missing = [f"{name} {tuple(value.shape)}" for name, value in expected.items() if name not in found]
    extra = [f"{name} {tuple(value.shape)}" for name, value in found.items() if name not in expected]
    other = [
        f"{name} of shape {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    parts = [("missing: ", missing), ("not known: ", extra), ("", other)]
    return "; ".join(label + shorten(names) for label, names in parts if names)


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) < 80 else f"{name[:80]}..." for name in names[:limit]) + more


def rename_keys(state: StateDict) -> StateDict:
    """Translate the original ESRGAN's names to BasicSR's; BasicSR's own stay as they are."""
    if any(re.match(r"model\.1\.sub\.\d+\.", name) for name in state):
        return _rename_oldest(state)
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    if "conv_body.weight" in renamed:  # RRDBNet's upconv1 is BasicSR's conv_up1; MSRResNet's keeps its name
        renamed = {re.sub(r"^upconv(\d)\.", r"conv_up\1.", name): value for name, value in renamed.items()}
    return renamed


def _rename_oldest(state: StateDict) -> StateDict:
    """``model.N`` of the first ESRGAN release: one flat sequence, numbered with its layers without weights."""
    trunk = sorted({int(match[1]) for name in state if (match := re.match(r"model\.1\.sub\.(\d+)\.", name))})
    tail = sorted({int(name.split(".")[1]) for name in state if re.match(r"model\.\d+\.(weight|bias)$", name)})
    layers = {"model.0": "conv_first", f"model.1.sub.{trunk[-1]}": "conv_body"}
    *ups, hr, last = [number for number in tail if number > 1] if len(tail) > 2 else [-1, -1]
    layers |= {f"model.{number}": f"conv_up{count}" for count, number in enumerate(ups, start=1)}
    layers |= {f"model.{hr}": "conv_hr", f"model.{last}": "conv_last"}
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        dense = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", layer)
        new = f"body.{dense[1]}.rdb{dense[2]}.conv{dense[3]}" if dense else layers.get(layer, layer)
        renamed[f"{new}.{kind}"] = value
    return renamed


def _refuse_impostors(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"model {path} cannot be read ({error.strerror})") from error
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"model {path} is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"model {path} is a web page, not weights: download the file itself (the raw link)")


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"model {path} cannot be read as safetensors: {error}") from error


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    content = load(path, "model")
    if isinstance(content, dict) and "optimizers" in content:
        raise UserError(f"model {path} is a training state, not a network: give models/net_g_*.pth of the same run")
    if not isinstance(content, dict):
        return content, {}
    return content, {name: str(value) for name, value in content.items() if isinstance(value, (str, int, float))}


def _as_state_dict(content: Any, path: Path) -> StateDict:
    """The state_dict in a file's content, as float32."""
    if isinstance(content, dict):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), content)
    state = content if isinstance(content, dict) else {}
    tensors = {name: value.float() for name, value in state.items() if _is_weight(name, value)}
    if not tensors:
        found = f"a mapping with {shorten([str(key) for key in state])}" if state else type(content).__name__
        raise UserError(f"model {path}: expected a generator's weights, got {found}")
    return tensors


def _is_weight(name: Any, value: Any) -> bool:
    """Whether an item of a file is a weight by its name: other numbers than real ones are none."""
    return isinstance(name, str) and isinstance(value, Tensor) and not value.is_complex()


def _strip_prefixes(state: StateDict) -> StateDict:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
