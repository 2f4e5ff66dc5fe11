"""Read a network's weights from any common file format."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.weight_names import PARTS, Part, StateDict, strip_prefixes
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.utils.safe_load import load_beside_objects

import torch
from torch import Tensor

# Keys of the state_dict in a file, EMA weights first: BasicSR (params_ema, params), other trainers.
CONTAINERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")

_TORCH = (b"PK\3\4", b"\x80")  # how a file of torch.save starts: a ZIP archive, before torch 1.6 a pickle
_PACKED = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}


@dataclass
class Weights:
    """The weights of one network.

    Attributes:
        state: Name without wrapper prefixes -> tensor on the CPU; floats of any precision become float32.
        path: The file.
        notes: Text and numbers stored with the weights, as text (our exports: scale, arch, provenance).
        holds: Description of the file's content.
    """

    state: StateDict
    path: Path
    notes: dict[str, str] = field(default_factory=dict)
    holds: str = ""


def read_weights(path: Path, prefer: str | None = None, part: Part = "generator") -> Weights:
    """Read weights of torch or safetensors: bare, in a container, with prefixes, in any precision.

    No code from the file is run (``weights_only=True``); objects beside the weights are left out.

    Args:
        path: The file.
        prefer: Key of the state_dict to use if there are several, such as ``params``. Otherwise, EMA weights come first
            (``params_ema``, ``params``, ...).
        part: The network to read from a file with both.

    Raises:
        UserError: The file does not exist, is damaged, has no weights of ``part``, or values that are not finite.
    """
    if not path.is_file():
        raise UserError(f"model {path}: {'expected a file' if path.exists() else 'no such file'}")
    start = _start_of(path)
    _refuse_impostors(path, start)
    refused = None
    if _is_safetensors(path, start):
        content, notes = _read_safetensors(path)
    else:
        content, notes, refused = _read_torch(path)
    holds = _describe(content)
    state = _unwrap(content, prefer, part)
    tensors = {name: _as_float32(value) for name, value in state.items() if _is_weight(name, value)}
    if not tensors:
        raise refused or UserError(f"model {path}: expected the weights of a {part}, got {holds}")
    if part == "generator" and isinstance(content, dict) and "pytorch-lightning_version" in content:
        tensors = _without_losses(tensors)
    tensors = strip_prefixes(tensors, part)
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"model {path}: {len(broken)} tensors contain NaN or infinity ({shorten(broken, 1)}): the training diverged"
        )
    return Weights(tensors, path, notes, holds)


def compare_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe how ``found`` differs from ``expected`` in names and shapes; "" if they agree."""
    missing = [f"{name} {tuple(value.shape)}" for name, value in expected.items() if name not in found]
    extra = [f"{name} {tuple(value.shape)}" for name, value in found.items() if name not in expected]
    other = [
        f"{name} of shape {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    parts = [("missing: ", missing), ("unexpected: ", extra), ("", other)]
    return "; ".join(label + shorten(names) for label, names in parts if names)


def _unwrap(content: Any, prefer: str | None, part: Part) -> dict[Any, Any]:
    """Return the state_dict of ``part`` from the containers of a file."""
    keys = (*([] if prefer is None else [prefer]), *CONTAINERS, *PARTS[part])
    others = {name for other, names in PARTS.items() if other != part for name in names}
    while isinstance(content, dict):
        inner = [key for key, value in content.items() if isinstance(value, dict)]
        single = inner if len(inner) == 1 and not others & set(inner) else []
        if any(isinstance(value, Tensor) for value in content.values()):
            single = []
        key = next((key for key in (*keys, *single) if key in inner), None)
        if key is None:
            return content
        content = content[key]
    return {}


def _without_losses(tensors: StateDict) -> StateDict:
    """Return the network of a Lightning module, which may also have losses and metrics with weights."""
    parts = ({name: value for name, value in tensors.items() if name.startswith(head)} for head in ("model.", "net."))
    return next((part for part in parts if part), tensors)


def _describe(content: Any) -> str:
    """Describe the content of a file."""
    if not isinstance(content, dict):
        return type(content).__name__
    inner = [f"{key} ({len(value)} entries)" for key, value in content.items() if isinstance(value, dict)]
    tensors = [f"{key} {tuple(value.shape)}" for key, value in content.items() if isinstance(value, Tensor)]
    if tensors:
        return f"{len(tensors)} tensors such as {shorten(tensors, 3)}"
    return f"a mapping with {shorten(inner or [str(key) for key in content])}"


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and not value.is_complex()


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise UserError(f"model {path} cannot be read ({error.strerror})") from error


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Tell by the content, a length of 8 bytes before JSON: downloads are often given another extension."""
    return start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_TORCH))


def _refuse_impostors(path: Path, start: bytes) -> None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    packed = next((name for signature, name in _PACKED.items() if start.startswith(signature)), None)
    if not start:
        raise UserError(f"model {path} is empty: copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"model {path} is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file")
    if text.lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"model {path} is a web page, not weights: download the file itself (the raw link)")
    if text.startswith((b"<", b"{")):
        said = " ".join(text.decode(errors="replace").split())
        raise UserError(f"model {path} is a web page or a server's message ({said}), not weights: download it again")
    if packed:
        raise UserError(f"model {path} is compressed ({packed}): unpack it and give the file in it")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):  # torch's
            raise UserError(f"model {path} is a ZIP archive ({shorten(names)}): unpack it and give the file in it")


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"model {path} cannot be read as safetensors: {error}") from error


def _read_torch(path: Path) -> tuple[Any, dict[str, str], UserError | None]:
    content, refused = load_beside_objects(path, "model")
    if isinstance(content, dict) and "optimizers" in content:
        raise UserError(f"model {path} is a training state, not a network: give models/net_g_*.pth of the same run")
    if not isinstance(content, dict):
        return content, {}, refused
    if "param_groups" in content:
        raise UserError(f"model {path} is the state of an optimizer, not a network: give the network saved beside it")
    notes = {name: str(value) for name, value in content.items() if isinstance(value, (str, int, float))}
    return content, notes, refused
