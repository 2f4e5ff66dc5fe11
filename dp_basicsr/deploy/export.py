"""Export a network as safetensors, BasicSR's .pth, ONNX or ncnn, and check what was written."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.network_spec import NetworkSpec
from dp_basicsr.deploy.choices import ExportFormat, exported_files
from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.deploy.network import load_network
from dp_basicsr.errors import UserError

import torch
from torch import Tensor

# (N, H, W) at which ONNX and ncnn are compared with torch; folded networks take multiples.
CHECK_SIZES = ((1, 1, 1), (1, 16, 16), (1, 17, 23), (2, 31, 8))
# Largest difference allowed, relative to the output's largest value: sums in another order, ncnn's Winograd transform,
# 11 bits of fp16.
TOLERANCES: dict[ExportFormat, float] = {"safetensors": 0, "pth": 0, "onnx": 1e-5, "ncnn": 1e-4}
HALF_TOLERANCE = 1e-2


def describe(network: LoadedNetwork, provenance: dict[str, str]) -> dict[str, str]:
    """What an exported file says about itself: how the network is built, then where it comes from. All text."""
    if network.runtime != "torch":
        raise UserError(
            "an ONNX or ncnn file cannot be exported again: give the .pth or .safetensors file that it comes from"
        )
    built: dict[str, object] = {"arch": network.arch, "scale": network.scale, "channels": network.channels}
    spec, size = network.spec, network.size
    if spec is not None:
        built |= {"num_feat": spec.num_feat, "num_block": spec.num_block, "num_grow_ch": spec.num_grow_ch}
    built |= {name: int(value) for name, value in dataclasses.asdict(size).items()}
    return provenance | {name: str(value) for name, value in built.items()}


def export_network(
    network: LoadedNetwork, kind: ExportFormat, output: Path, facts: dict[str, str], half: bool = False
) -> float:
    """Write a network, and check it before it is put in place.

    Args:
        network: With its weights on the CPU.
        kind: ``safetensors``: BasicSR's names, ``facts`` as metadata. ``pth``: BasicSR's form, ``params`` beside
            ``facts``, nothing but tensors, strings and numbers. ``onnx``: dynamic batch, height and width, ``facts``
            as metadata. ``ncnn``: ``.param`` and ``.bin``. The last two need the extra ``export``.
        output: The file; for ncnn both without their suffix.
        facts: See ``describe``.
        half: Weights in fp16; with ONNX also input, output and arithmetic.

    Returns:
        The largest difference found, relative to the largest value: 0 for weights, which must be the same bits.

    Raises:
        UserError: A package is missing, weights exceed the range of fp16, the format cannot hold the network, or what
            was written differs from the network.
    """
    write = {"safetensors": _write_safetensors, "pth": _write_pth, "onnx": _write_onnx, "ncnn": _write_ncnn}[kind]
    if half and not all(value.half().isfinite().all() for value in _state_of(network, False).values()):
        raise UserError("--half: some weights are beyond the range of fp16 (65504)")
    output.parent.mkdir(parents=True, exist_ok=True)
    files = exported_files(kind, output)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        drafts = [Path(folder) / f"draft{file.suffix if kind == 'ncnn' else f'.{kind}'}" for file in files]
        write(network, drafts[0], facts, half)
        is_weights = TOLERANCES[kind] == 0
        difference = _compare_weights(network, drafts[0], half) if is_weights else _compare_outputs(network, drafts[0])
        if not difference <= (HALF_TOLERANCE if half and not is_weights else TOLERANCES[kind]):
            raise UserError(f"the exported {kind} differs from the network by {difference:.1e}; nothing was written")
        for draft, file in zip(drafts, files, strict=True):
            draft.replace(file)
    return difference


def spandrel_limit(spec: NetworkSpec | None) -> str | None:
    """Why spandrel 0.4 (chaiNNer, ComfyUI) cannot open a network's weights; None where it can."""
    if spec is None:
        return None
    if spec.arch == "MSRResNet":
        return "it does not know MSRResNet"
    if spec.num_grow_ch != 32:
        return f"it takes every RRDBNet to have a growth of 32, this one has {spec.num_grow_ch}"
    if spec.arch == "RRDBNetDP" and spec.scale == 3:
        return "it takes one upsampling layer for x2, and would give images of twice the size, wrongly"
    return None


def _write_safetensors(network: LoadedNetwork, path: Path, facts: dict[str, str], half: bool) -> None:
    from safetensors.torch import save

    # Not by save_file, which makes a file that its owner alone may read.
    path.write_bytes(save(_state_of(network, half), metadata={**facts, "format": "pt"}))


def _write_pth(network: LoadedNetwork, path: Path, facts: dict[str, str], half: bool) -> None:
    numbers = {name: int(value) if value.isdecimal() else value for name, value in facts.items()}
    torch.save({"params": _state_of(network, half), **numbers}, path)


def _write_ncnn(network: LoadedNetwork, path: Path, facts: dict[str, str], half: bool) -> None:
    from dp_basicsr.deploy.ncnn_network import write_ncnn

    write_ncnn(network, path, half)


def _write_onnx(network: LoadedNetwork, path: Path, facts: dict[str, str], half: bool) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401  (what is written is checked with it)
        import onnxscript  # noqa: F401  (torch's exporter is built on it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'dp_basicsr[export]'") from error
    fold = network.multiple
    size = {
        0: torch.export.Dim("batch"),
        2: fold * torch.export.Dim("height") if fold > 1 else torch.export.Dim("height"),
        3: fold * torch.export.Dim("width") if fold > 1 else torch.export.Dim("width"),
    }
    module = copy.deepcopy(network.module).half() if half else network.module
    example = torch.rand(2, network.channels, 8 * fold, 12 * fold, dtype=torch.float16 if half else torch.float32)
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), str(path), dynamo=True, external_data=False, dynamic_shapes=(size,),
            input_names=["image"], output_names=["upscaled"],
        )  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, str(path))


def _state_of(network: LoadedNetwork, half: bool) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().contiguous() for name, value in network.module.state_dict().items()}
    return {name: value.half() if half and value.is_floating_point() else value for name, value in state.items()}


def _compare_weights(network: LoadedNetwork, path: Path, half: bool) -> float:
    """Return 0 if the file gives the same network with the same bits, otherwise infinity."""
    again = load_network([path])
    ours, theirs = _state_of(network, half), again.module.state_dict()
    same = all(torch.equal(value.float(), theirs[name].float()) for name, value in ours.items())
    return 0.0 if same and again.description == network.description else float("inf")


def _compare_outputs(network: LoadedNetwork, path: Path) -> float:
    """Return the largest relative difference between torch and what runs the file, over all sizes."""
    other: Any = load_network([path]).module
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, height, width in CHECK_SIZES:
        shape = (batch, network.channels, *network.size.fit(height * network.multiple, width * network.multiple))
        image = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            ours, theirs = network.module(image), other(image)
        if ours.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    return worst
