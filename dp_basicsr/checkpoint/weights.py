"""Read a network's weights from any common file format: which of them are the best, and what they are called."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.checkpoint.opened_network import is_converted
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.images.files import missing_hint
from dp_basicsr.utils.safe_load import load_beside_objects

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Part = Literal["generator", "discriminator"]

# Keys of the state_dict in a file, the usual ones first: of BasicSR; of Lightning, mmagic and timm; of others.
CONTAINERS = ("params", "state_dict", "model_state_dict", "model", "net", "generator", "net_g", "netG", "G")

# Weights that are averaged over the training: EMA of BasicSR, timm, KAIR and others, torch's AveragedModel.
_AVERAGED = re.compile(r"(?:^|[^a-z])(?:emas?|swa|averaged?|shadow|model_avg|avg_model)(?:[^a-z]|$)", re.IGNORECASE)
_DISCRIMINATOR = re.compile(r"(?:ema_)?(?:(?:net_?)?d|disc|discriminator)(?:_ema)?", re.IGNORECASE)
_GENERATOR = re.compile(r"(?:ema_)?(?:(?:net_?)?g|gen|generator)(?:_ema)?", re.IGNORECASE)
_NETWORKS = (_GENERATOR, _DISCRIMINATOR, re.compile("model|net|network|online_model"))
# Entries of a file that hold tensors, but no weights of the network to use: the weights before averaging too.
_OTHERS = re.compile(
    r"optim|sched|(?<!up)scaler|loss|criteri|perceptual|lpips|vgg|metric|data_preprocessor|current_model_state|collected",
    re.IGNORECASE,
)

# Prefixes of wrappers: DistributedDataParallel, torch.compile, FSDP, Lightning (but not the layers model.0, ...).
_WRAPPER = re.compile(r"module\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|net\.|model\.(?!\d)")
# Counters that averaging keeps beside the weights (torch, ema-pytorch, LitEma, mmengine).
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_COUNTERS = frozenset({"n_averaged", "initted", "step", "steps", "num_updates", "decay"})

# The names of the original ESRGAN and SRResNet code (2018) -> BasicSR's. `_rename_oldest` handles the form model.N.
_RENAMED = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^recon_trunk\.", "body."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^HRconv\.", "conv_hr."),
)

# Tensors of weight norm and spectral norm in torch's parametrizations -> their names in the older hooks.
_NORMS = {"original": "orig", "0._u": "u", "0._v": "v", "original0": "g", "original1": "v"}

_TORCH = (b"PK\3\4", b"\x80")  # how a file of torch.save starts: a ZIP archive, before torch 1.6 a pickle
_PACKED = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}


@dataclass(frozen=True)
class Weights:
    """The weights of one network."""

    state: StateDict  # BasicSR's name of a weight -> tensor on the CPU; floats of any precision become float32
    path: Path
    # Stored with the weights (our exports: scale, arch, provenance).
    notes: dict[str, str] = field(default_factory=dict)
    holds: str = ""  # description of the file's content
    choice: str = ""  # which weights of the file these are, if it has several or averaged ones


@dataclass(frozen=True)
class _Entry:
    """The weights of one network somewhere in a file: ``keys`` lead to it."""

    keys: tuple[str, ...]
    state: StateDict
    averaged: bool

    @property
    def name(self) -> str:
        return ".".join(self.keys)


def read_weights(
    path: Path, prefer: str | None = None, part: Part = "generator", names: Collection[str] = ()
) -> Weights:
    """Read weights of torch or safetensors: bare, in a container, with prefixes, in any precision.

    No code from the file is run (``weights_only=True``); objects beside the weights are left out.

    Args:
        prefer: Key of the state_dict to use if there are several, such as ``params``. Otherwise the averaged weights
            (EMA) are used, where there are any.
        part: The network to read from a file with both.
        names: Weights of the network to fill. If the file has just these, they are not translated to BasicSR's.

    Raises:
        UserError: The file does not exist, is damaged, has no weights of ``part``, or values that are not finite.
    """
    content, notes, refused = _read_file(path)
    holds = _describe(content)
    entries = list(_entries(content))
    keys = set(content) if isinstance(content, dict) else set()
    if "param_groups" in keys:  # whose moments look like weights
        raise UserError(f"model {path} is the state of an optimizer, not a network: give the network saved beside it")
    if "current_model_state" in keys or {"message_hub", "ema_state_dict"} <= keys:
        # Lightning and mmengine exchange the two before they save: `state_dict` is the average.
        entries = [replace(entry, averaged=entry.keys[0] == "state_dict") for entry in entries]
    usual = prefer in (None, "params", "params_ema")  # that a file of other names need not have
    named = [entry.keys for entry in entries if entry.keys]  # numbers beside a network have none
    if not usual and len(named) > 1 and not any(prefer in keys for keys in named):
        raise UserError(f"model {path}: expected weights named {prefer!r} (param_key), got {holds}")
    entry = _best(entries, prefer, part)
    if entry is None:
        if "optimizers" in keys:
            raise UserError(f"model {path} is a training state, not a network: give models/net_g_*.pth of the same run")
        raise refused or UserError(f"model {path}: expected the weights of a {part}, got {holds}")
    state = {name: value.float() if value.is_floating_point() else value for name, value in entry.state.items()}
    known = {_without_parametrization(name): name for name in names}
    state = {known.get(_without_parametrization(name), name): value for name, value in state.items()}
    if any("lora_" in name for name in state.keys() - set(names)):
        raise UserError(
            f"model {path} has a LoRA, which is no network of its own: merge it into its network first, "
            "with PEFT by model.merge_and_unload(), and save the result's state_dict"
        )
    scales = [name for name in state.keys() - set(names) if name.endswith((".weight_scale", ".scale_weight"))]
    if scales or any(name.endswith(".weight") and not value.is_floating_point() for name, value in state.items()):
        raise UserError(f"model {path} has quantised weights, whose scales are not known: give it in fp16 or fp32")
    if part == "generator" and state.keys() != set(names):
        fitting = {head: inner for head, inner in parts_of(state).items() if names and inner.keys() == set(names)}
        if len(fitting) > 1 and prefer not in fitting:
            raise UserError(f"model {path} has {', '.join(fitting)}: give one of them as path: param_key_g")
        state = fitting.get(str(prefer)) or next(iter(fitting.values()), None) or _canonical(state)
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise UserError(
            f"model {path}: {len(broken)} tensors contain NaN or infinity ({shorten(broken, 1)}): the training diverged"
        )
    return Weights(state, path, notes, holds, _name_choice(entry, entries, content, path))


def _read_file(path: Path) -> tuple[Any, dict[str, str], UserError | None]:
    """Return a file's content, what it says about itself, and why objects in it are left out; refuse impostors."""
    if not path.is_file():
        other = "expected a file, not its folder" if path.is_dir() else "expected a file, not a pipe: save it first"
        what = other if path.exists() else "no such file"
        hint = missing_hint(path) or ("; nor is there a network in it" if path.is_dir() else "")
        raise UserError(f"model {path}: {what}{hint}")
    if is_converted(path):
        raise UserError(
            f"model {path}: ONNX and ncnn files cannot be trained, interpolated or exported again: give the .pth or "
            ".safetensors that it comes from"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
        is_zip = zipfile.is_zipfile(path)
        inside = zipfile.ZipFile(path).namelist() if is_zip else []
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"model {path} cannot be read ({error})") from error
    packed = next((name for signature, name in _PACKED.items() if start.startswith(signature)), None)
    if b"<net name=" in start or (path.with_suffix(".xml").is_file() and not start.startswith(_TORCH)):
        raise UserError(f"model {path} is one of OpenVINO's two files: give the .onnx, .pth or .safetensors behind it")
    refuse_other_texts(path, start)
    if packed or (is_zip and not any(name.endswith("data.pkl") for name in inside)):  # torch's has it
        what = f"compressed ({packed})" if packed else f"a ZIP archive ({shorten(inside)})"
        raise UserError(f"model {path} is {what}: unpack it and give the file in it")
    # By the content, a length of 8 bytes before JSON: downloads are often given another extension.
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_TORCH)):
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load

        try:
            try:
                with safe_open(path, framework="pt") as tensors:
                    content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                    notes = dict(tensors.metadata() or {})
            except SafetensorError as error:
                # So it calls an intact file with bytes after the last tensor, too; and of paths it takes Unicode alone.
                if not re.search("incomplete metadata|MetadataIncomplete|^Path .* UTF-8", str(error), re.DOTALL):
                    raise
                data = path.read_bytes()
                header = 8 + int.from_bytes(data[:8], "little")
                described = json.loads(data[8:header])
                notes = described.pop("__metadata__", {})
                size = max((tensor["data_offsets"][1] for tensor in described.values()), default=0)
                content = load(data[: header + size])
        except (SafetensorError, OSError) as error:
            raise UserError(f"model {path} cannot be read as safetensors: {error}: copy it again") from error
        # `save_model` writes a tensor of several names once, and notes the others.
        content = {name: content[first] for name, first in notes.items() if first in content} | content
        return content, notes or _notes_in(content), None
    content, refused = load_beside_objects(path, "model")
    return content, _notes_in(content), refused


def refuse_other_texts(path: Path, start: bytes) -> None:
    """Raise a UserError for a file that begins as what a download gives in place of a model, or that is empty."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise UserError(f"model {path} is empty: copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"model {path} is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file")
    if text.startswith((b"<", b"{")):
        said = " ".join(text.decode(errors="replace").split())
        raise UserError(
            f"model {path} is a web page, a server's message or settings ({said}), not weights: download the file "
            "itself (the raw link)"
        )


def _notes_in(content: Any) -> dict[str, str]:
    items = content.items() if isinstance(content, dict) else ()
    return {str(name): str(value) for name, value in items if isinstance(value, (str, int, float))}


def _name_choice(entry: _Entry, entries: list[_Entry], content: Any, path: Path) -> str:
    """Return which of the weights were taken; empty if there is only one set, not averaged."""
    if entry.averaged:
        return f"EMA weights ({entry.name})" if entry.keys else "EMA weights"
    beside = path.with_name(f"{path.stem[:-2]}_E{path.suffix}")
    if path.stem.endswith("_G") and beside.is_file():  # KAIR
        return f"not the EMA weights, which are in {beside.name}"
    chosen = f"weights {entry.name}" if entry.keys else "weights"
    unused = [other.name for other in entries if other.averaged]
    if isinstance(content, dict):  # an average of another kind: an object, or one of single parameters
        simple = (dict, str, int, float, type(None))
        unused += [str(key) for key, value in content.items()
                   if _AVERAGED.search(str(key)) and not isinstance(value, simple)]  # fmt: skip
    if unused:
        return f"{chosen}, not the EMA ({unused[0]})"
    # Those without a name are single numbers beside the networks.
    named = (other for other in entries if other.keys)
    networks = [other.name for other in named if not any(_DISCRIMINATOR.fullmatch(key) for key in other.keys)]
    return f"{chosen}, of {', '.join(networks)}" if len(networks) > 1 else ""


def interpolate(first: Weights, second: Weights, alpha: float) -> Weights:
    """Network interpolation (ESRGAN, section 3.4): ``(1 - alpha) * first + alpha * second``, weight by weight."""
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha_interp: expected a number from 0 (first model) to 1 (second model), got {alpha}")
    if differences := compare_shapes(first.state, second.state):
        raise UserError(f"{first.path} and {second.path} cannot be interpolated, the second has {differences}")
    state = {
        name: torch.lerp(value, second.state[name], alpha) if value.is_floating_point() else value
        for name, value in first.state.items()
    }
    note = f"{1 - alpha:g} * {first.path.name} + {alpha:g} * {second.path.name}"
    both = first.choice == second.choice
    said = [of.choice if both else f"{of.choice} of {of.path.name}" for of in (first, second) if of.choice]
    choice = ", ".join(dict.fromkeys([note, *said]))
    lighter, heavier = (first, second) if alpha >= 0.5 else (second, first)
    return Weights(state, second.path, {**lighter.notes, **heavier.notes, "interpolation": note}, choice=choice)


def compare_shapes(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str:
    """Describe how ``actual`` differs from ``expected`` in names and shapes; "" if they agree."""
    missing = [f"{name} {tuple(value.shape)}" for name, value in expected.items() if name not in actual]
    extra = [f"{name} {tuple(value.shape)}" for name, value in actual.items() if name not in expected]
    other = [
        f"{name} of shape {tuple(actual[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in actual and actual[name].shape != value.shape
    ]
    parts = [("missing: ", missing), ("unexpected: ", extra), ("", other)]
    return "; ".join(label + shorten(names) for label, names in parts if names)


def parts_of(state: StateDict) -> dict[str, StateDict]:
    """Return what is below each first name: parts of a trainer or layers, but no loss, discriminator or copy."""
    parts: dict[str, StateDict] = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if not (_OTHERS.search(head) or _DISCRIMINATOR.fullmatch(head)):
            parts.setdefault(head, {})[rest] = value
    # A network is tried with each: neither a block of a list nor a layer of weight and bias is one.
    if len(parts) > 1:
        parts = {head: part for head, part in parts.items() if len(part) > 2 and not head.isdecimal()}
    return {head: part for head, part in parts.items() if not part.keys() <= {"", *state}}


def _without_parametrization(name: str) -> str:
    layer, is_new, kind = name.partition(".parametrizations.weight.")
    return f"{layer}.weight_{_NORMS[kind]}" if is_new and kind in _NORMS else name


def _canonical(state: StateDict) -> StateDict:
    """Translate the original ESRGAN's names to BasicSR's; return other state_dicts unchanged."""
    if any(re.match(r"model\.1\.sub\.\d+\.", name) for name in state):
        return _rename_oldest(state)
    if not any(name.startswith(("RRDB_trunk.", "recon_trunk.")) for name in state):
        return state
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    if "conv_body.weight" in renamed:  # RRDBNet's upconv1 becomes conv_up1; MSRResNet's stays
        renamed = {re.sub(r"^upconv(\d)\.", r"conv_up\1.", name): value for name, value in renamed.items()}
    return renamed


def _rename_oldest(state: StateDict) -> StateDict:
    """Translate ``model.N`` of the first ESRGAN release, where layers without weights are numbered too.

    Networks with other layers (ESRGAN+), or too few, are returned unchanged.
    """
    trunk = [int(match[1]) for name in state if (match := re.match(r"model\.1\.sub\.(\d+)\.", name))]
    tail = sorted({int(match[1]) for name in state if (match := re.fullmatch(r"model\.(\d+)\.(?:weight|bias)", name))})
    if tail[:1] != [0] or len(tail) < 3:
        return state
    _, *ups, hr, last = tail
    layers = {"model.0": "conv_first", f"model.1.sub.{max(trunk)}": "conv_body"}
    layers |= {f"model.{number}": f"conv_up{count}" for count, number in enumerate(ups, start=1)}
    layers |= {f"model.{hr}": "conv_hr", f"model.{last}": "conv_last"}
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        dense = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", layer)
        new = f"body.{dense[1]}.rdb{dense[2]}.conv{dense[3]}" if dense else layers.get(layer)
        if new is None:
            return state
        renamed[f"{new}.{kind}"] = value
    return renamed


def _entries(content: Any, keys: tuple[str, ...] = (), averaged: bool = False) -> Iterator[_Entry]:
    """Yield the weights of every network in a file, below keys of mappings and prefixes of names at any depth."""
    if not isinstance(content, dict) or (keys and _OTHERS.search(keys[-1])):
        return
    if keys:  # ema-pytorch keeps the network beside its average
        averaged = (averaged and keys[-1] != "online_model") or bool(_AVERAGED.search(keys[-1]))
    state: StateDict = {}
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _entries(value, (*keys, str(key)), averaged)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):  # one for each decay
            yield from _entries({str(number): item for number, item in enumerate(value)}, (*keys, str(key)), averaged)
        elif isinstance(key, str) and isinstance(value, Tensor) and not value.is_complex():
            state[key] = value
        elif isinstance(value, (list, tuple)) and value and _AVERAGED.search(str(key)):
            # torch_ema, diffusers, NeMo: the average as a list, in the order of the parameters.
            numbered = {str(number): item for number, item in enumerate(value)}
            if all(isinstance(item, Tensor) for item in value):
                yield _Entry((*keys, str(key)), numbered, averaged=True)
    while state:
        counters = {name for name in _COUNTERS & state.keys() if state[name].ndim == 0}
        # Where nothing else is left, these names are the weights.
        if len(counters) < len(state):
            state = {name: value for name, value in state.items() if name not in counters}
            averaged |= "n_averaged" in counters
        wrappers = {match[0] if (match := _WRAPPER.match(name)) else "" for name in state}
        if len(wrappers) > 1 or wrappers == {""}:
            break
        # Wrappers stand in any order, with counters between them.
        prefix = wrappers.pop()
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    heads: dict[str, set[str]] = {}  # the first part of names -> what follows
    for name in state:
        heads.setdefault(name.partition(".")[0], set()).add(name.partition(".")[2])
    named = [head for head in heads if _is_network(head, state)]
    # What has an average beside it is a network, whatever it is called.
    averages = [heads[head] for head in named if _AVERAGED.search(head)]
    named += [head for head in heads if head not in named and heads[head] in averages]
    # A single such name among others is a layer, unless the others are no weights.
    if len(named) > 1 or (named and (len(heads) == 1 or any(_OTHERS.search(head) for head in heads))):
        for head in named:
            inner = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{head}.")}
            yield from _entries(inner, (*keys, head), averaged)
        # Beside mere discriminators, a generator may be called anything.
        if all(_DISCRIMINATOR.fullmatch(head) for head in named) and len(parts := parts_of(state)) == 1:
            yield _Entry(keys, parts.popitem()[1], averaged)
    elif any(value.dtype != torch.uint8 for value in state.values()):  # unlike the states of random generators
        yield _Entry(keys, state, averaged)


def _is_network(head: str, state: StateDict) -> bool:
    """Return whether the first part of names is that of a whole network; `model.0` is a layer of an ESRGAN of 2018."""
    is_certain = len(head) > 1 and (_GENERATOR.fullmatch(head) or _DISCRIMINATOR.fullmatch(head))
    if not is_certain and any(re.match(rf"{re.escape(head)}(?:\.\d|$)", name) for name in state):
        return False
    return bool(_AVERAGED.search(head) or any(pattern.fullmatch(head) for pattern in _NETWORKS))


def _best(entries: list[_Entry], prefer: str | None, part: Part) -> _Entry | None:
    """Return the weights to use: of the right network, the preferred key, averaged ones, then the usual keys."""
    other = _DISCRIMINATOR if part == "generator" else _GENERATOR

    def rank(entry: _Entry) -> tuple[bool, bool, int, int]:
        order = next((CONTAINERS.index(key) for key in entry.keys if key in CONTAINERS), len(CONTAINERS))
        return prefer not in entry.keys, not entry.averaged, order, len(entry.keys)

    usable = [entry for entry in entries if not any(other.fullmatch(key) for key in entry.keys)]
    raw = min((entry for entry in usable if not entry.averaged), key=rank, default=None)
    completed = [_complete(entry, raw) if entry.averaged and raw else entry for entry in usable]
    return min((entry for entry in completed if entry), key=rank, default=None)


def _complete(entry: _Entry, raw: _Entry) -> _Entry | None:
    """Give averaged weights the names of the last ones, and what has no average (buffers); None if that cannot be."""
    state = entry.state
    if all(name.isdecimal() for name in state):
        parameters = [name for name, value in raw.state.items() if not name.endswith(_BUFFERS)]
        if [raw.state[name].shape for name in parameters] != [value.shape for value in state.values()]:
            return None
        state = dict(zip(parameters, state.values(), strict=True))
    elif not state.keys() & raw.state.keys():
        plain = {name.replace(".", ""): name for name in raw.state}  # LitEma: module names may not have dots
        state = {plain.get(name, name): value for name, value in state.items()}
    if not state.keys() <= raw.state.keys():
        return entry
    return replace(entry, state={**raw.state, **state})


def _describe(content: Any) -> str:
    """Describe the content of a file."""
    if not isinstance(content, dict):
        return type(content).__name__
    inner = [f"{key} ({len(value)} entries)" for key, value in content.items() if isinstance(value, dict)]
    tensors = [f"{key} {tuple(value.shape)}" for key, value in content.items() if isinstance(value, Tensor)]
    if tensors:
        return f"{len(tensors)} tensors such as {shorten(tensors, 3)}"
    if not content:
        return "an empty one: copy, download or export it again"
    return f"a mapping with {shorten(inner or [str(key) for key in content])}"
