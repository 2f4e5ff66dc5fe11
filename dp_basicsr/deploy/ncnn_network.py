"""Networks in ncnn's format: write them by pnnx, and run them."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.errors import UserError

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import ncnn

# Names of the input and output that Upscayl and realesrgan-ncnn-vulkan look for.
BLOBS = {"in0": "data", "out0": "output"}
PROBE = (1, 3, 8, 8)


class NcnnModule(nn.Module):
    """Runs a network in ncnn on the CPU, on (N, 3, H, W) float32 tensors."""

    def __init__(self, net: ncnn.Net) -> None:
        super().__init__()
        self.net = net
        self.input_name, self.output_name = net.input_names()[0], net.output_names()[0]

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, RGB in [0, 1]."""
        return torch.stack([self._run(image) for image in x.float().cpu().numpy()])

    def _run(self, image: Any) -> Tensor:
        import ncnn

        pixels = np.ascontiguousarray(image)  # ncnn's Mat uses its memory: it must live until the result is there
        extractor = self.net.create_extractor()
        extractor.input(self.input_name, ncnn.Mat(pixels))
        status, result = extractor.extract(self.output_name)
        if status != 0:
            raise MemoryError("ncnn gave no result")
        return torch.from_numpy(np.array(result))


def open_ncnn(path: Path, device: str = "auto") -> LoadedNetwork:
    """Open ``net.param`` and ``net.bin`` (``path`` is either): RGB in, RGB out.

    Raises:
        UserError: A file is missing, ncnn is not installed, a device other than the CPU is wanted, or it is not a
            network of that kind.
    """
    try:
        import ncnn
    except ImportError as error:
        raise UserError("ncnn files need ncnn: pip install 'dp_basicsr[export]'") from error
    files = path.with_suffix(".param"), path.with_suffix(".bin")
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f"model {path}: no such file: {', '.join(missing)}")
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: ncnn files run on the CPU; give the .pth or .safetensors file")
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if unknown := _unknown_layers(files[0]):
        raise UserError(f"model {files[0]}: ncnn has no layer {', '.join(unknown)}")
    if net.load_param(str(files[0])) != 0 or net.load_model(str(files[1])) != 0:
        raise UserError(f"model {path}: ncnn cannot read it")
    module = NcnnModule(net)
    try:
        shape = tuple(module(torch.zeros(PROBE)).shape)
    except (MemoryError, IndexError) as error:
        raise UserError(f"model {path}: ncnn cannot run it on {PROBE[2]} x {PROBE[3]} pixels") from error
    scale = shape[-1] // PROBE[-1]
    if shape != (1, 3, scale * PROBE[2], scale * PROBE[3]) or scale < 1:
        raise UserError(f"model {path}: expected RGB in and RGB out, got {shape} for {PROBE}")
    description = f"ncnn x{scale} on the CPU"
    return LoadedNetwork(module, scale, f"{path.stem}: {description}", "ncnn", description, runtime="ncnn")


def write_ncnn(network: LoadedNetwork, path: Path, half: bool) -> None:
    """Write ``path`` (.param) and the .bin beside it.

    Args:
        network: With its weights on the CPU.
        path: Ends in ``.param``; its folder also takes pnnx's intermediate files.
        half: Weights in fp16.

    Raises:
        UserError: pnnx is not installed, or cannot convert the network.
    """
    try:
        import ncnn  # noqa: F401  (what is written is checked with it)
        import pnnx
    except ImportError as error:
        raise UserError(f"ncnn needs {error.name}: pip install 'dp_basicsr[export]'") from error
    if network.channels != 3:
        raise UserError(
            "ncnn: the applications that read it give RGB images, this network takes gray: export it as ONNX"
        )
    side = 16 * network.multiple
    example, other = (1, 3, side, side + 8 * network.multiple), (1, 3, 2 * side, side)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and is what pnnx reads
        torch.jit.trace(network.module, torch.rand(example), check_trace=False).save(str(path.parent / "net.pt"))
    shapes = [f"inputshape={[*example]}f32", f"inputshape2={[*other]}f32"]
    command = [pnnx.EXEC_PATH, "net.pt", *(shape.replace(" ", "") for shape in shapes), f"fp16={int(half)}"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
    made = path.parent / "net.ncnn.param"
    if done.returncode != 0 or not made.is_file():
        raise UserError(
            f"pnnx cannot convert it for ncnn: {(done.stderr or done.stdout).decode(errors='replace').strip()[-200:]}"
        )
    if unknown := _unknown_layers(made):
        why = " (pixel-unshuffle at the input)" if network.spec and network.spec.is_folded else ""
        raise UserError(f"ncnn has no layer for what pnnx left of it: {', '.join(unknown)}{why}; export it as ONNX")
    text = re.sub(r"(?<=\s)(in0|out0)(?=\s)", lambda match: BLOBS[match[1]], made.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    (path.parent / "net.ncnn.bin").replace(path.with_suffix(".bin"))


def _unknown_layers(param: Path) -> list[str]:
    """Return types of layers that pnnx passed through because ncnn has none like them."""
    lines = param.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    return sorted({kind for line in lines if (kind := line.partition(" ")[0]) and not kind.isalnum()})
