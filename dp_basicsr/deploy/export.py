"""Export a network as safetensors, BasicSR's .pth, ONNX or ncnn, and check what was written."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.deploy.choices import EXPORTS
from dp_basicsr.deploy.engine import try_room
from dp_basicsr.deploy.torch_engine import difference_from_torch
from dp_basicsr.errors import UserError, first_line
from dp_basicsr.utils.atomic_io import naming, replacing

import torch
from torch import Tensor

# (N, H, W) at which files that torch does not read are compared with it; folded networks take multiples.
CHECK_SIZES = ((1, 1, 1), (1, 16, 16), (1, 17, 23), (2, 31, 8))
# H and W of an ONNX file of one size, a multiple of the usual windows.
FIXED_SIDE = 192
HALF_TOLERANCE = 1e-2  # of the values of a network in fp16, 11 bits


def describe(network: OpenedNetwork, provenance: dict[str, str]) -> dict[str, str]:
    """What an exported file says about itself: how the network is built, then where it comes from. All text."""
    built: dict[str, object] = {"arch": network.arch, "scale": network.scale, "channels": network.channels}
    built |= network.arguments | {name: int(value) for name, value in dataclasses.asdict(network.size).items()}
    # The name of the source need not be Unicode, as all text in these files must be.
    return {name: str(value).encode(errors="backslashreplace").decode() for name, value in (provenance | built).items()}


def export_network(network: OpenedNetwork, kind: str, output: Path, facts: dict[str, str], half: bool = False) -> float:
    """Write a network, and check it before it is put in place.

    Args:
        network: With its weights on the CPU. If ONNX can hold it at one size alone, its ``size`` becomes that.
        kind: One of ``EXPORTS``, which say what is in the files. ONNX and ncnn need the extra ``export``.
        output: The file; for ncnn both without their suffix.
        facts: See ``describe``.
        half: Weights in fp16; with ONNX also input, output and arithmetic.

    Returns:
        The largest difference found, relative to the largest value: 0 for weights, which must be the same bits.

    Raises:
        UserError: A package is missing, weights exceed the range of fp16, the format cannot hold the network, or what
            was written differs from the network.
    """
    format_ = EXPORTS[kind]
    if half and not all(value.half().isfinite().all() for value in _state_of(network, False).values()):
        raise UserError("--half: some weights are beyond the range of fp16 (65504)")
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system alone.
    with naming(output), tempfile.TemporaryDirectory(dir=output.parent, prefix=".draft-") as folder:
        drafts = [Path(folder) / f"draft{suffix}" for suffix in format_.suffixes]
        if format_.engine:
            try_room(network, folder)
            engine = format_.engine.load()
            tolerance = HALF_TOLERANCE if half else format_.tolerance
            difference, reason = _convert(network, engine, drafts[0], facts, half)
            # Not `>`, which is false for NaN, too.
            if kind == "onnx" and not difference <= tolerance and (reason or math.isfinite(difference)):
                # The exporter takes the number of a network's windows for a constant. Upscaling cuts and pads tiles for
                # a file of one size.
                side = max(network.size.fit(FIXED_SIDE, FIXED_SIDE))
                network.size = dataclasses.replace(network.size, minimum=side, maximum=side)
                difference, reason = _convert(network, engine, drafts[0], describe(network, facts), half)
        else:
            difference, tolerance, reason = _save_weights(network, drafts[0], facts, half), 0, ""
        if not difference <= tolerance:
            wrong = f"cannot be run ({reason})" if reason else f"differs from the network by {difference:.1e}"
            instead = "; export it as .safetensors" if format_.engine else ""
            if half and not math.isfinite(difference) and not reason:
                instead = "; inside it, values exceed the range of fp16 (65504): export it without --half"
            raise UserError(f"the exported {kind} {wrong}; nothing was written{instead}")
        for draft, file in zip(drafts, format_.files(output), strict=True):
            with replacing(file) as temporary:
                shutil.move(draft, temporary)
    return difference


def limit_elsewhere(network: OpenedNetwork, kind: str, name: str) -> str | None:
    """What other programs cannot do with an export called ``name``, as a sentence; None if nothing."""
    scale, growth = network.scale, network.arguments.get("num_grow_ch", 32)
    if not EXPORTS[kind].engine:
        # Of spandrel 0.4.
        limit = None
        if network.arch == "MSRResNet":
            limit = "it does not know MSRResNet"
        elif growth != 32 and network.arch.startswith("RRDBNet"):
            limit = f"it takes every RRDBNet to have a growth of 32, this one has {growth}"
        elif (network.arch, scale) == ("RRDBNetDP", 3):
            limit = "it takes one upsampling layer for x2, and would give images of twice the size, wrongly"
        return limit and f"spandrel (chaiNNer, ComfyUI) cannot open it: {limit}; export it as ONNX for these"
    if kind == "onnx" and (side := network.size.maximum):
        return f"it takes images of {side} x {side} pixels alone, as programs must cut them; `dp-basicsr upscale` does"
    if kind != "ncnn":
        return None
    # Upscayl's own rule, common/check-model-scale.ts of its repository.
    taken = next((known for known in (2, 3) if re.search(rf"x{known}|{known}x", name, re.IGNORECASE)), 4)
    if scale not in (2, 3, 4):
        return f"Upscayl cannot use it: it knows x2, x3 and x4, and takes this x{scale} for x{taken}"
    if taken != scale:
        return f"Upscayl takes the scale from the name, x{taken} for {name}: choose one with x{scale} alone"
    if network.size.multiple > 1:
        return f"programs that do not pad images to multiples of {network.size.multiple} lose rows and columns"
    return None


def _state_of(network: OpenedNetwork, half: bool) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().contiguous() for name, value in network.module.state_dict().items()}
    return {name: value.half() if half and value.is_floating_point() else value for name, value in state.items()}


def _save_weights(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool) -> float:
    """Write weights; return 0 if the file gives the same network with the same bits, otherwise infinity."""
    state = _state_of(network, half)
    if path.suffix == ".pth":
        numbers = {name: int(value) if value.isdecimal() else value for name, value in facts.items()}
        torch.save({"params": state, **numbers}, path)
    else:
        from safetensors.torch import save

        # Not by save_file, which makes a file that its owner alone may read.
        path.write_bytes(save(state, metadata={**facts, "format": "pt"}))
    text = f"{network.arch} can be opened beside the options of its run alone: export it as ONNX"
    try:
        again = load_network([path])
    except UserError as error:
        raise UserError(text) from error
    if again.description != network.description:
        raise UserError(text)
    # Not the module's: SPAN computes some anew from others. They are read in float32, whatever the file has.
    theirs = read_weights(path, names=state).state
    same = all(torch.equal(value.float(), theirs[name].float()) for name, value in state.items())
    return 0.0 if same else math.inf


def _convert(network: OpenedNetwork, engine: Any, path: Path, facts: dict[str, str], half: bool) -> tuple[float, str]:
    """Write a file that another package runs; return its largest relative difference from torch, or why it fails."""
    try:
        engine.write(network, path, facts, half)
    except UserError:
        raise
    except Exception as error:  # of the exporter
        return math.inf, first_line(error)
    sizes = ((1, 1, 1), (2, 1, 1)) if network.size.maximum else CHECK_SIZES
    try:
        return difference_from_torch(network, engine(None, path=path), sizes), ""
    except Exception as error:  # of the runtime
        return math.inf, first_line(error)
