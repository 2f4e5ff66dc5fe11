"""Load a network from files: weights of one model or two, or ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dp_basicsr.checkpoint.weights import Weights, compare_shapes, read_weights
from dp_basicsr.deploy.choices import is_converted
from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.deploy.provenance import run_options
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import input_size

import torch
from torch import nn


def load_network(
    paths: Sequence[Path], *, alpha_interp: float | None = None, scale: int | None = None, device: str = "cpu"
) -> LoadedNetwork:
    """Load a generator from a file of weights or ONNX, or interpolate two files of weights.

    Args:
        paths: One file, or two: a PSNR model and a GAN model (in ESRGAN's order).
        alpha_interp: Share of the second file, 0 to 1 (default: 0.8, ESRGAN's example).
        scale: For the one case where neither the weights nor anything beside them tell (RRDBNetDP, x2 or x3).
        device: For ONNX files, which choose their device when they are opened; other networks start on the CPU.

    Raises:
        UserError: Files that cannot be read, do not fit, or do not fit each other.
    """
    if len(paths) not in (1, 2):
        raise UserError(f"--model_path: expected one model, or two to interpolate; got {len(paths)}")
    if len(paths) == 1 and alpha_interp is not None:
        raise UserError("--alpha_interp needs two models: --model_path PSNR.pth GAN.pth --alpha_interp 0.8")
    if any(is_converted(path) for path in paths):
        if len(paths) == 2:
            raise UserError("ONNX and ncnn files cannot be interpolated: give the .pth or .safetensors they come from")
        if paths[0].suffix == ".onnx":
            from dp_basicsr.deploy.onnx_network import open_onnx

            return open_onnx(paths[0], device)
        from dp_basicsr.deploy.ncnn_network import open_ncnn

        return open_ncnn(paths[0], device)
    weights = read_weights(paths[0])
    if len(paths) == 2:
        weights = interpolate(weights, read_weights(paths[1]), 0.8 if alpha_interp is None else alpha_interp)
    return assemble(weights, scale)


def assemble(weights: Weights, scale: int | None = None) -> LoadedNetwork:
    """Build the network that ``weights`` are of and fill it.

    Raises:
        UserError: See ``open_network``, or ``scale`` is given and is not the network's.
    """
    from dp_basicsr.archs.from_file_arch import open_network

    options = run_options(weights.path) or {}
    trained_as = (options.get("network_g") or {}).get("scale")
    notes = weights.notes if trained_as is None else {"scale": str(trained_as), **weights.notes}
    opened = open_network(replace(weights, notes=notes), scale)
    if scale not in (None, opened.scale):
        raise UserError(
            f"--scale {scale}: {weights.path} is {opened.description}; the size of the result is --outscale"
        )
    module = opened.module.requires_grad_(False)
    return LoadedNetwork(
        module,
        opened.scale,
        ", ".join(filter(None, (f"{weights.path.name}: {opened.description}", weights.choice))),
        opened.arch,
        opened.description,
        size=input_size(module),
        channels=opened.channels,
        num_feat=_features(module),
        notes=weights.notes,
        spec=opened.spec,
    )


def interpolate(first: Weights, second: Weights, alpha: float) -> Weights:
    """Network interpolation (ESRGAN, section 3.4): ``(1 - alpha) * first + alpha * second``, weight by weight.

    Raises:
        UserError: ``alpha`` is not within [0, 1], or the two are not weights of one network.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha_interp: expected a number from 0 (first model) to 1 (second model), got {alpha}")
    one, other = first.state, second.state
    differences = compare_shapes(one, other)
    if differences:
        raise UserError(f"{first.path} and {second.path} cannot be interpolated, the second has {differences}")
    state = {
        name: torch.lerp(value, other[name], alpha) if value.is_floating_point() else value
        for name, value in one.items()
    }
    note = {"interpolation": f"{1 - alpha:g} * {first.path.name} + {alpha:g} * {second.path.name}"}
    choice = second.choice or first.choice
    return Weights(state, second.path, {**first.notes, **second.notes, **note}, choice=choice)


def _features(module: nn.Module) -> int:
    """Channels that the first convolution gives."""
    return next((layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), 64)
