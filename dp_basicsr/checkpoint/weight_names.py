"""Translate weight names: prefixes of wrappers, and the names of the original ESRGAN code."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

StateDict = dict[str, Tensor]
Part = Literal["generator", "discriminator"]

# Prefixes of wrappers: DistributedDataParallel, torch.compile, Lightning (but not the layers model.0, ...).
_WRAPPER = re.compile(r"module\.|_orig_mod\.|net\.|model\.(?!\d)")

# Names of the networks in a file with several, as keys or prefixes; EMA weights first.
PARTS: dict[Part, tuple[str, ...]] = {
    "generator": ("generator_ema", "net_g_ema", "g_ema", "generator", "net_g", "netG", "G"),
    "discriminator": ("discriminator", "net_d", "netD", "D"),
}

# The names of the original ESRGAN and SRResNet code (2018) -> BasicSR's. `_rename_oldest` handles the form model.N.
_RENAMED = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^recon_trunk\.", "body."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^HRconv\.", "conv_hr."),
)


def strip_prefixes(state: StateDict, part: Part) -> StateDict:
    """Remove the prefixes of wrappers, in any order; if the state_dict has several networks, return ``part``."""
    several = {name for names in PARTS.values() for name in names}
    while True:
        wrappers = {match[0] if (match := _WRAPPER.match(name)) else "" for name in state}
        heads = {name.partition(".")[0] for name in state}
        chosen = next((one for one in PARTS[part] if one in heads), "")
        if len(wrappers) == 1 and wrappers != {""}:
            prefix = wrappers.pop()
        elif chosen and (len(heads) == 1 or len(heads & several) > 1):  # otherwise a layer has that name
            prefix = f"{chosen}."
        else:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename_keys(state: StateDict) -> StateDict:
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
