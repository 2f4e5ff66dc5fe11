"""Handing a network on: safetensors, BasicSR's .pth, ONNX; each checked after it was written."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

from dp_basicsr.deploy.choices import ExportFormat
from dp_basicsr.deploy.loaded_network import LoadedNetwork, NetworkSpec
from dp_basicsr.deploy.network import load_network
from dp_basicsr.errors import UserError

import torch
from torch import Tensor

# (N, H, W) at which ONNX is held against torch: one, odd, not square, a batch. Folded networks take multiples.
CHECK_SIZES = ((1, 1, 1), (1, 16, 16), (1, 17, 23), (2, 31, 8))
# Largest difference allowed, relative to the output's largest value: float32 sums in another order.
TOLERANCE = 1e-5


def describe(network: LoadedNetwork, provenance: dict[str, str]) -> dict[str, str]:
    """What an exported file says about itself: how the network is built, then where it comes from. All text."""
    spec = network.spec
    if spec is None:
        raise UserError("an ONNX file cannot be exported again: give the .pth or .safetensors file that it comes from")
    built = {
        "arch": spec.arch,
        "scale": spec.scale,
        "num_feat": spec.num_feat,
        "num_block": spec.num_block,
        "num_grow_ch": spec.num_grow_ch,
        "multiple": spec.multiple,
    }
    return provenance | {name: str(value) for name, value in built.items()}


def export_network(network: LoadedNetwork, kind: ExportFormat, output: Path, facts: dict[str, str]) -> float:
    """Write a network to ``output``, checked before it takes its place.

    Args:
        network: With its weights on the CPU.
        kind: ``safetensors``: BasicSR's names, ``facts`` as metadata. ``pth``: BasicSR's form, ``params`` beside
            ``facts``, nothing but tensors, strings and numbers. ``onnx``: dynamic batch, height and width, ``facts``
            as metadata; needs the extra ``export``.
        output: The file.
        facts: See ``describe``.

    Returns:
        The largest difference found, relative to the largest value: 0 for weights, which must be the same bits.

    Raises:
        UserError: A package is missing, or what was written does not give what the network gives.
    """
    write = {"safetensors": _write_safetensors, "pth": _write_pth, "onnx": _write_onnx}[kind]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        draft = Path(folder) / f"draft.{kind}"
        write(network, draft, facts)
        difference = _compare_outputs(network, draft) if kind == "onnx" else _compare_weights(network, draft)
        if not difference <= (TOLERANCE if kind == "onnx" else 0):
            raise UserError(f"the exported {kind} differs from the network by {difference:.1e}; nothing was written")
        draft.replace(output)
    return difference


def spandrel_limit(spec: NetworkSpec) -> str | None:
    """Why spandrel 0.4 (chaiNNer, ComfyUI) cannot open a network's weights; None where it can."""
    if spec.arch == "MSRResNet":
        return "it does not know MSRResNet"
    if spec.num_grow_ch != 32:
        return f"it takes every RRDBNet to have a growth of 32, this one has {spec.num_grow_ch}"
    if spec.arch == "RRDBNetDP" and spec.scale == 3:
        return "it takes one upsampling layer for x2, and would give images of twice the size, wrongly"
    return None


def _write_safetensors(network: LoadedNetwork, path: Path, facts: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(_state_of(network), path, metadata={**facts, "format": "pt"})


def _write_pth(network: LoadedNetwork, path: Path, facts: dict[str, str]) -> None:
    numbers = {name: int(value) if value.isdecimal() else value for name, value in facts.items()}
    torch.save({"params": _state_of(network), **numbers}, path)


def _write_onnx(network: LoadedNetwork, path: Path, facts: dict[str, str]) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401  (what is written is checked with it)
        import onnxscript  # noqa: F401  (torch's exporter is built on it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install '.[export]'") from error
    fold = network.multiple
    size = {
        0: torch.export.Dim("batch"),
        2: fold * torch.export.Dim("height") if fold > 1 else torch.export.Dim("height"),
        3: fold * torch.export.Dim("width") if fold > 1 else torch.export.Dim("width"),
    }
    example = torch.rand(2, 3, 8 * fold, 12 * fold)
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.module, (example,), str(path), dynamo=True, external_data=False, dynamic_shapes=(size,),
            input_names=["image"], output_names=["upscaled"],
        )  # fmt: skip
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, str(path))


def _state_of(network: LoadedNetwork) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.module.state_dict().items()}


def _compare_weights(network: LoadedNetwork, path: Path) -> float:
    """0 if the file gives the same network with the same bits, else infinity."""
    again = load_network([path])
    ours, theirs = _state_of(network), again.module.state_dict()
    same = again.spec == network.spec and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    return 0.0 if same else float("inf")


def _compare_outputs(network: LoadedNetwork, path: Path) -> float:
    """The largest relative difference between torch and onnxruntime over all sizes."""
    other: Any = load_network([path]).module
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, height, width in CHECK_SIZES:
        shape = (batch, 3, height * network.multiple, width * network.multiple)
        image = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            ours, theirs = network.module(image), other(image)
        if ours.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    return worst
