"""ONNX files: written by torch, run by onnxruntime."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.engine import Engine, limit_threads
from dp_basicsr.errors import UserError, first_line, import_optional
from dp_basicsr.utils.input_size import InputSize
from dp_basicsr.utils.tiles import Floats

import numpy as np

# The sides of an image may have to be multiples, where a network halves it. Each is tried times odd numbers, so that no
# larger one would do, and times larger ones, because the network may have a smallest size instead.
FREE_SIZES = [
    InputSize(multiple, minimum=multiple * number if number > 1 else 1)
    for multiple in (1, 2, 4, 8, 16, 32)
    for number in (1, 5, 9, 17, 33, 65)
    if number == 1 or 16 < multiple * number <= 80
]
# The numbers of other inputs than float32.
_TYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
# White of input and output: files of other programs may take levels, and round to them.
_WHITES = ((1.0, 1.0), (255.0, 255.0), (255.0, 1.0), (1.0, 255.0))
_NEWER = re.compile(r"IR version: \d+, max supported IR version: \d+|Opset \d+ is under development")
_FROZEN = re.compile(r"Input shape:\{([\d,]+)\}, requested shape:\{([-\d,]+)\}")
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")  # of such a file: in ONNX a length and the name follow


def import_onnxruntime() -> Any:
    """Import onnxruntime without its telemetry.

    From 1.29 it keeps an identity and a database in the user's cache, and sends every session to its makers.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when it is imported
    return import_optional("onnxruntime")


class OnnxEngine(Engine):
    """Runs an ONNX file: ours, or any with one input (N, 3, H, W) and an output of a whole multiple of its size.

    Files of TensorFlow have the colours last: (N, H, W, 3). Values are in [0, 1] or levels, which a run shows.
    """

    white = _WHITES[0]

    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        ort = import_onnxruntime()
        if not self.path.is_file():
            raise UserError(f"model {self.path}: no such file")
        options = ort.SessionOptions()
        # Not even errors, which are raised as well.
        options.log_severity_level = 4
        options.intra_op_num_threads = limit_threads()
        wanted = [] if device == "cpu" else ["CUDAExecutionProvider"]
        usable = [name for name in (*wanted, "CPUExecutionProvider") if name in ort.get_available_providers()]
        if device.startswith("cuda") and "CUDAExecutionProvider" not in usable:
            raise UserError(f"--device {device}: this onnxruntime has no CUDA: pip install onnxruntime-gpu")
        try:
            # onnxruntime takes Unicode alone for a path, of which Linux takes any bytes.
            is_text = str(self.path).encode(errors="replace").decode() == str(self.path)
            model = str(self.path) if is_text else self.path.read_bytes()
            self.session = ort.InferenceSession(model, options, providers=usable)
            self.input = self.session.get_inputs()[0]
            # Of a fixed size are numbers, others names or None; the list is empty where the file has none.
            self.fixed = [side if isinstance(side, int) else 0 for side in self.input.shape or [None] * 4]
            self.is_last = self.fixed[3:] in ([1], [3]) and self.fixed[1] not in (1, 3)  # where the colours are
            if self.is_last:
                self.fixed.insert(1, self.fixed.pop())
            network = network or self._recognise()
            if network.arch == "ONNX":
                self._find_white(network)
        except Exception as error:  # onnxruntime's errors have no common class
            from dp_basicsr.checkpoint.weights import refuse_other_texts  # which imports torch

            with self.path.open("rb") as file:
                refuse_other_texts(self.path, file.read(64))
            reason = first_line(error)
            if "rotobuf parsing" in reason:
                reason = "it is no ONNX file, or a part of one: export or download it again"
            elif re.search("NOT_IMPLEMENTED|Type Error|input data type", reason):
                reason = f"{reason.rstrip('.')}; export it in float32, of opset 7 or newer"
            if "Cannot parse data from external" in reason:
                reason = "it has shapes in a file beside it: onnx.save(onnx.load(FILE), OTHER) writes all into one"
            # The weights of a large network are in files of their own, called external; 1.23 asks for their size.
            elif re.search("xternal|file size", str(error)):
                data = self.path.read_bytes()
                files = {
                    data[match.end() :][: match[1][0]].decode(errors="replace") for match in _LOCATION.finditer(data)
                }
                names = ", ".join(sorted(files))
                reason = f"its weights are in {names}, which must be beside it and complete ({reason})"
            if newer := _NEWER.search(str(error)):
                versions = f"onnxruntime {ort.__version__} ({newer[0]})"
                reason = f"it is newer than {versions}: pip install --upgrade onnxruntime"
            raise UserError(f"model {self.path}: onnxruntime cannot run it: {reason}") from error
        by = f"by onnxruntime {ort.__version__}, {self.session.get_providers()[0].removesuffix('ExecutionProvider')}"
        return network, by

    def _recognise(self) -> OpenedNetwork:
        """Return what the file tells of its network, and what a run of it shows."""
        notes = dict(self.session.get_modelmeta().custom_metadata_map)
        known = {field.name: int(notes[field.name]) for field in dataclasses.fields(InputSize) if field.name in notes}
        if others := ", ".join(entry.name for entry in self.session.get_inputs()[1:]):
            raise ValueError(f"beside the image, {self.input.name}, it takes {others}: export it for an image alone")
        if sides := [side for side in self.fixed[2:] if side]:
            least = min(sides)
            known |= {"minimum": least, "maximum": least}
            known |= {"taller": sides[0] - least, "wider": sides[-1] - least}
        if len(self.fixed) == 4 and self.fixed[1] not in (0, 1, 3):
            raise ValueError(f"it takes {self.fixed[1]} channels: export it for RGB (3) or gray (1)")
        channels, errors = (1 if self.fixed[1:2] == [1] else 3), []
        sizes = [InputSize(**known)] if known else FREE_SIZES.copy()  # type: ignore[arg-type]
        frozen: re.Match[str] | None = None
        # The list may grow while it is walked.
        for size in sizes:
            side = size.maximum or max(size.minimum, size.multiple * max(3, 8 // size.multiple + 1))
            try:
                scale = self.probe(channels, *size.fit(side, side))
                break
            except Exception as error:  # as above
                errors.append(error)
            # Some name free sides, and reshape to those of the example that they were exported with: the numbers of
            # values, in which a batch may be -1, are as the areas.
            if len(errors) == 1 and not known and (frozen := _FROZEN.search(str(errors[0]))):
                now, then = (abs(math.prod(map(int, numbers.split(",")))) for numbers in frozen.groups())
                if now and (example := math.isqrt(side * side * then // now)) ** 2 * now == side * side * then:
                    sizes.insert(1, InputSize(minimum=example, maximum=example))
        else:
            reason = "it reshapes to fixed sizes of no square: export it with free height and width"
            raise ValueError(reason) if frozen else errors[0]
        data, gray = self.path.read_bytes(), np.full((1, channels, *size.fit(side, side)), 0.5, np.float32)
        # In training mode batch-norm takes a tile's own statistics, and dropout draws anew in each run.
        is_training = b"training_mode\x18\x01" in data
        if is_training or (b'"\x07Dropout' in data and not np.allclose(self.run(gray), self.run(gray), equal_nan=True)):
            self.warn(f"model {self.path} is in training mode, which gives other pixels: export it after .eval()")
        if len(names := [output.name for output in self.session.get_outputs()]) > 1:
            self.warn(f"model {self.path} has the outputs {', '.join(names)}: the largest image is taken")
        arch = notes.get("arch", "ONNX")
        return OpenedNetwork(self.path.name, arch, scale, f"ONNX x{scale}", "", channels, size, notes=notes)

    def _find_white(self, network: OpenedNetwork) -> None:
        """Find the range of the values, in which gray stays gray; [0, 1] if it does in none, as by untrained weights.

        Levels that are rounded make black and white of [0, 1].
        """
        gray = np.full((1, network.channels, *network.size.fit(8, 8)), 0.5, np.float32)
        for self.white in _WHITES:
            result = self.run(gray)
            is_rounded = np.array_equal(result, result.round())
            if not is_rounded and abs(result.mean() - 0.5) < (0.1 if self.white == _WHITES[0] else 0.05):
                return
        self.white = _WHITES[0]

    def run(self, images: Floats) -> Floats:
        dtype = _TYPES.get(self.input.type, np.float32)
        images = images * self.white[0] if self.white[0] > 1 else images
        images = images.round().clip(0, 255) if dtype == np.uint8 else images
        batch = self.fixed[0] or len(images)
        results = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch].astype(dtype)
            # A file of a fixed batch takes no smaller one: the last image fills it up.
            filled = np.concatenate([part, part[-1:].repeat(batch - len(part), 0)])
            axis = 3 if self.is_last else 1  # of the colours
            given = np.ascontiguousarray(np.moveaxis(filled, 1, axis))
            outputs = self.session.run(None, {self.input.name: given})
            # Beside the image there may be features, or smaller images; of equal ones, the first.
            images_out = [each for each in outputs if each.ndim == 4 and each.shape[axis] == given.shape[axis]]
            result = max(images_out or outputs[:1], key=np.size)[: len(part)]
            results.append(result.transpose(0, 3, 1, 2) if self.is_last else result)
        result = np.concatenate(results).astype(np.float32, copy=False)
        return result / np.float32(self.white[1]) if self.white[1] > 1 else result

    @staticmethod
    def write(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool = False) -> None:
        """Write ``facts`` as metadata; with ``half`` also input and output are fp16.

        A network whose size has a maximum is written for one image of this size.
        """
        import_onnxruntime()  # what is written is checked with it
        import_optional("onnxscript")  # torch's exporter is built on it
        onnx = import_optional("onnx")
        import torch

        # A copy, because it is changed, and the result is compared with the network.
        module = copy.deepcopy(network.module)
        # SPAN's layers write their fused weights anew in each pass, at which torch's exporter ends the process.
        for layer in (layer for layer in module.modules() if hasattr(layer, "update_params")):
            layer.update_params()
            layer.update_params = lambda: None
        module = module.half() if half else module
        fold, side = network.size.multiple, network.size.maximum
        # A batch of 2: the exporter would take 1 for a constant.
        shape = (1 if side else 2, network.channels, *network.size.fit(8 * fold, 12 * fold))
        example = torch.rand(shape, dtype=torch.float16 if half else torch.float32)
        height, width = torch.export.Dim("height"), torch.export.Dim("width")
        # A folded network takes multiples alone, which the exporter has to be told.
        free = {
            0: torch.export.Dim("batch"),
            2: fold * height if fold > 1 else height,
            3: fold * width if fold > 1 else width,
        }
        output = io.StringIO()
        # The exporter tells of its progress, and warns of its own plans.
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, (example,), str(path), dynamo=True, external_data=False,
                dynamic_shapes=None if side else (free,), input_names=["image"], output_names=["upscaled"],
            )  # fmt: skip
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, str(path))
