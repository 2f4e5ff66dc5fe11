"""ncnn's files: written by pnnx, run by ncnn."""

from __future__ import annotations

import ctypes
import math
import os
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.engine import Engine, limit_threads
from dp_basicsr.errors import UserError, import_optional, shorten
from dp_basicsr.utils.input_size import InputSize
from dp_basicsr.utils.tiles import Floats

import numpy as np

# Names of the input and output that Upscayl and realesrgan-ncnn-vulkan look for.
BLOBS = {"in0": "data", "out0": "output"}
# Which number of a layer is its stride, and which its factor of enlargement.
STRIDE = {"Convolution": "3", "ConvolutionDepthWise": "3", "Pooling": "2", "Reorg": "0"}
FACTOR = {"Deconvolution": "3", "DeconvolutionDepthWise": "3", "Interp": "1", "PixelShuffle": "0"}


class NcnnEngine(Engine):
    """Runs ``net.param`` and ``net.bin`` (``path`` is either) on the CPU: RGB in, RGB out."""

    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        ncnn = import_optional("ncnn")
        param, weights = self.path.with_suffix(".param"), self.path.with_suffix(".bin")
        if missing := [str(file) for file in (param, weights) if not file.is_file()]:
            raise UserError(f"model {self.path}: no such file: {', '.join(missing)}; ncnn's two have one name")
        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: ncnn files run on the CPU; give the .pth or .safetensors file")
        if not param.read_bytes().startswith(b"7767517"):
            way = f"exchange it with {weights.name}, save it without a byte order mark, or export an old one anew"
            raise UserError(f"model {param}: expected ncnn's text, which begins with 7767517: {way}")
        if unknown := _unknown_layers(param):
            raise UserError(f"model {param}: ncnn has no layer {shorten(unknown)}: it is damaged, or of another ncnn")
        self.net = ncnn.Net()
        if threads := limit_threads():
            self.net.opt.num_threads = threads
        options = self.net.opt
        # ncnn would compute in fp16 where the CPU can; this engine promises fp32.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        if self.net.load_param(os.fsencode(param)) != 0:
            raise UserError(f"model {param}: ncnn cannot read it: copy it again with {weights.name}, or export it anew")
        if weights.stat().st_size and not any(weights.read_bytes()):
            raise UserError(f"model {weights}: expected weights, got zeros alone: copy it again")
        with weights.open("rb") as file:
            # ncnn takes the weights of another network as its own, and leaves some or lacks some.
            if self.net.load_model(_reader(file)) != 0 or file.read(1):
                got = f"{weights.stat().st_size:,} bytes of others or a part"
                raise UserError(f"model {weights}: expected the weights of {param.name}, got {got}")
        if len(names := self.net.input_names()) != 1:
            # ncnn would crash.
            raise UserError(f"model {self.path}: expected one input, an image, got {len(names)} ({', '.join(names)})")
        fits = _input_size(param.read_text(encoding="utf-8"))
        side = fits.multiple * max(3, 8 // fits.multiple)
        try:
            scale = self.probe(3, side, side)
            if self.run(np.zeros((1, 3, 2 * side, 2 * side), np.float32)).shape[2] != 2 * side * scale:
                raise ValueError("it gives one size alone: export it anew, for any size (pnnx: inputshape2=)")
        except (MemoryError, IndexError, ValueError) as error:
            raise UserError(f"model {self.path}: ncnn cannot run it on {side} x {side} pixels: {error}") from error
        return network or OpenedNetwork(self.path.name, "ncnn", scale, f"ncnn x{scale}", size=fits), "on the CPU"

    def run(self, images: Floats) -> Floats:
        ncnn = import_optional("ncnn")
        results = []
        for image in images:
            extractor = self.net.create_extractor()
            # A copy that ncnn owns: a first layer that writes into its input would end the process.
            extractor.input(self.net.input_names()[0], ncnn.Mat(np.ascontiguousarray(image)).clone())
            status, result = extractor.extract(self.net.output_names()[0])
            if status != 0:
                raise MemoryError("ncnn gave no result")
            results.append(np.array(result))
        return np.stack(results)

    @staticmethod
    def write(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool = False) -> None:
        """Write ``path`` (.param) and the .bin beside it; their folder also takes pnnx's intermediate files."""
        import_optional("ncnn")  # what is written is checked with it
        pnnx = import_optional("pnnx")
        import torch

        if network.channels != 3:
            raise UserError("ncnn: the programs that read it give RGB, this network takes gray: export it as ONNX")
        fold = network.size.multiple
        # pnnx leaves those sides free in which two inputs differ.
        shapes = ([1, 3, 16 * fold, 24 * fold], [1, 3, 32 * fold, 16 * fold])
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and is what pnnx reads
            traced = torch.jit.trace(network.module, torch.rand(shapes[0], dtype=torch.float32), check_trace=False)
            (path.parent / "net.pt").write_bytes(traced.save_to_buffer())
        first, second = (f"{shape}f32".replace(" ", "") for shape in shapes)
        command = [pnnx.EXEC_PATH, "net.pt", f"inputshape={first}", f"inputshape2={second}", f"fp16={int(half)}"]
        done = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
        made = path.parent / "net.ncnn.param"
        if done.returncode != 0 or not made.is_file():
            output = (done.stderr or done.stdout).decode(errors="replace").strip()[-200:]
            raise UserError(f"pnnx cannot convert it for ncnn: {output}")
        if unknown := _unknown_layers(made):
            raise UserError(f"ncnn has no layer for what pnnx left of it: {', '.join(unknown)}; export it as ONNX")
        text = re.sub(r"(?<=\s)(in0|out0)(?=\s)", lambda match: BLOBS[match[1]], made.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        (path.parent / "net.ncnn.bin").replace(path.with_suffix(".bin"))


def _reader(file: BinaryIO) -> Any:
    """Return what ncnn reads an open file with, which tells what it leaves."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)

    class Reader(import_optional("ncnn").DataReader):  # type: ignore[misc]
        def read(self, target: Any, size: int) -> int:
            data = file.read(size)
            ctypes.memmove(address(target, None), data, len(data))
            return len(data)

    return Reader()


def _unknown_layers(param: Path) -> list[str]:
    """Return types of layers that this ncnn does not have, such as those that pnnx passed through."""
    ncnn = import_optional("ncnn")
    # Behind the magic number and the counts.
    lines = param.read_text(encoding="utf-8", errors="replace").splitlines()[2:]
    return sorted({kind for line in lines if (kind := line.partition(" ")[0]) and ncnn.layer_to_index(kind) < 0})


def _input_size(param: str) -> InputSize:
    """Return the sizes that are left without a remainder by strides, where ncnn would invent pixels."""
    multiple = fold = 1
    shrunk: dict[str, float] = {}  # by the names of results: how much smaller than the input they are
    for line in filter(str.strip, param.splitlines()[2:]):
        kind, _, before, after, *words = line.split()
        first, last = int(before), int(before) + int(after)
        given = dict(number.partition("=")[::2] for number in words[last:])
        factor = max((shrunk.get(name, 1.0) for name in words[:first]), default=1.0)
        factor *= float(given.get(STRIDE.get(kind, ""), 1))
        enlarged = float(given.get(FACTOR.get(kind, ""), 1))
        # A factor of 0 stands for the size of another result.
        shrunk |= dict.fromkeys(words[first:last], factor / enlarged if enlarged else 1.0)
        multiple = math.lcm(multiple, max(int(factor), 1))
        fold *= int(given["0"]) if kind == "Reorg" else 1
    return InputSize(multiple, fold=fold)
