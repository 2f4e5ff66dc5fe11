"""From weights to a network that runs: which architecture, how large, which scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.deploy.loaded_network import FOLDED, LoadedNetwork, NetworkSpec
from dp_basicsr.deploy.provenance import run_options
from dp_basicsr.deploy.weights import StateDict, Weights, compare_shapes, interpolate, read_weights, shorten
from dp_basicsr.errors import UserError


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
    if any(path.suffix in (".onnx", ".param", ".bin") for path in paths):
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
        UserError: No known architecture, or tensors that are missing, too many or of another shape: it names them.
    """
    spec = find_spec(weights, scale)
    module = spec.build()
    differences = compare_shapes(module.state_dict(), weights.state)
    if differences:
        raise UserError(f"model {weights.path} looks like {spec}, but has {differences}")
    module.load_state_dict(weights.state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    title = f"{weights.path.name}: {spec}"
    return LoadedNetwork(module, spec.scale, spec.multiple, spec.num_feat, title, weights.notes, spec)


def find_spec(weights: Weights, scale: int | None = None) -> NetworkSpec:
    """Find architecture, size and scale from names and shapes.

    Raises:
        UserError: Unknown architecture, not three colours, or a scale that cannot be told or is not ``scale``.
    """
    state = weights.state
    if "conv_first.weight" not in state:
        raise UserError(
            f"model {weights.path}: expected the weights of RRDBNet (ESRGAN) or MSRResNet (SRResNet), "
            f"got {len(state)} tensors such as {shorten(list(state), 3)}"
        )
    num_feat, channels = state["conv_first.weight"].shape[:2]
    # Counted: the largest number of a file of rubbish may be any, and so many blocks would be built.
    num_block = max(len({match[1] for name in state if (match := re.match(r"body\.(\d+)\.", name))}), 1)
    growth = _find_shape(state, r"body\.\d+\.rdb\d\.conv[1-4]\.weight")
    colours = (_find_shape(state, r"conv_last\.weight") or (3,))[0]
    if colours != 3 or channels % 3:
        raise UserError(f"model {weights.path}: expected RGB in and out, got {channels} channels in, {colours} out")
    if growth is None:
        spec = NetworkSpec("MSRResNet", _resnet_scale(state, num_feat), num_feat, num_block)
    elif channels // 3 in FOLDED:
        spec = NetworkSpec("RRDBNet", FOLDED[channels // 3][0], num_feat, num_block, growth[0])
    else:
        found = 4 if "conv_up2.weight" in state else _told_scale(weights, scale)
        spec = NetworkSpec("RRDBNetDP", found, num_feat, num_block, growth[0])
    if scale not in (None, spec.scale):
        raise UserError(f"--scale {scale}: {weights.path} is {spec}; the size of the result is --outscale")
    return spec


def _told_scale(weights: Weights, scale: int | None) -> int:
    """x2 or x3: RRDBNetDP has the same tensors for both. Said by the user, the file, or the run that it comes from."""
    options = run_options(weights.path) or {}
    for told in (scale, weights.notes.get("scale"), (options.get("network_g") or {}).get("scale")):
        if str(told) in ("2", "3"):
            return int(str(told))
    raise UserError(
        f"model {weights.path} has one upsampling layer, which is the same at x2 and x3, and neither the file nor an "
        "option file beside its models/ folder says which: give --scale 2 or --scale 3"
    )


def _resnet_scale(state: StateDict, num_feat: int) -> int:
    """MSRResNet: two x2 pixel-shuffles, or one of scale * scale * num_feat channels."""
    if "upconv2.weight" in state:
        return 4
    shape = _find_shape(state, r"upconv1\.weight")
    return 3 if shape is not None and shape[0] == 9 * num_feat else 2


def _find_shape(state: StateDict, pattern: str) -> tuple[int, ...] | None:
    return next((tuple(value.shape) for name, value in state.items() if re.fullmatch(pattern, name)), None)
