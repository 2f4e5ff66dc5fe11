"""The upscaling command in every engine, BasicSR's plain loop, and a bare OpenVINO script, from file to file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.deploy.choices import EngineName
from dp_basicsr.deploy.open_engine import cache_root, open_engine
from dp_basicsr.deploy.upscale_picture import upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import write_picture
from dp_basicsr.utils.tiles import to_floats

import cv2
import numpy as np
import torch
from basicsr.utils import img2tensor, tensor2img

from scripts.bench.measure import ROOT, Settings, Table, compare, in_turns

ENGINES = tuple(name for name in get_args(EngineName) if name != "auto")

# What somebody writes who has the converted network and no other wish: arguments are network.xml, input, output.
BARE_OPENVINO = """
import sys
sys.modules["openvino_telemetry"] = None
from pathlib import Path
import cv2, numpy as np, openvino
network = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sorted(Path(sys.argv[2]).iterdir()):
    image = cv2.imread(str(path))[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    result = network(image)[0][0].clip(0, 1) * 255
    cv2.imwrite(str(Path(sys.argv[3]) / path.name), result.round().astype(np.uint8).transpose(1, 2, 0)[:, :, ::-1])
"""


def plain_loop(net: torch.nn.Module, device: torch.device, source: Path, target: Path) -> None:
    """Upscale one image as BasicSR's inference script does: no_grad, whole image."""
    image = cv2.imread(str(source), cv2.IMREAD_COLOR).astype(np.float32) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        result = net(img2tensor(image).unsqueeze(0).to(device))
    cv2.imwrite(str(target), tensor2img(result))


def measure(settings: Settings) -> list[Table]:
    """Measure seconds with the paper's generator, x4: one image in a running process, and six from start to end."""
    blocks = 1 if settings.quick else 23
    torch.manual_seed(0)
    net = RRDBNetDP(num_block=blocks).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"params": net.state_dict()}, folder / "net.pth")
        upscalers = {}
        for engine in ENGINES:
            try:
                opened = open_engine([folder / "net.pth"], engine=engine, device="auto" if engine == "torch" else "cpu")
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
            else:
                upscalers[engine] = Upscaler(opened)
        note = f"{blocks} blocks, 64 features."
        tables = [_one_image(net, upscalers, folder, 24 if settings.quick else 128, settings.rounds, note)]
        if "openvino" in upscalers:
            engines = ["openvino"] if settings.quick else list(upscalers)
            tables.append(_six_images(engines, folder, 12 if settings.quick else 70, settings.rounds, note))
    return tables


def _one_image(
    net: torch.nn.Module, upscalers: dict[str, Upscaler], folder: Path, size: int, rounds: int, note: str
) -> Table:
    """Compare the engines on one image, from file to file, and their values with BasicSR's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, source, target = net.to(device), folder / "in.png", folder / "out.png"
    pixels = _write_images(source.parent / "one", 1, size)[0]
    (source.parent / "one" / "0.png").rename(source)
    works: dict[str, Callable[[], object]] = {"BasicSR's loop": partial(plain_loop, net, device, source, target)}
    for name, upscaler in upscalers.items():
        works[f"--engine {name}"] = partial(_upscale_file, upscaler, source, target)
    corner = to_floats(pixels[:64, :64])
    with torch.no_grad():
        expected = net(torch.from_numpy(corner).to(device)).cpu().numpy()
    differences = {
        name: float(np.abs(upscaler.engine(corner) - expected).max()) for name, upscaler in upscalers.items()
    }
    found = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    title = f"Inference, {size} x {size} pixels, x4, file to file in a running process"
    table = compare(title, in_turns(works, rounds), None, f"{note} Largest difference from BasicSR's output: {found}.")
    table.figures["difference"] = differences
    return table


def _upscale_file(upscaler: Upscaler, source: Path, target: Path) -> None:
    write_picture(upscale_picture(read_picture(source), upscaler), target)


def _six_images(engines: list[str], folder: Path, size: int, rounds: int, note: str) -> Table:
    """Compare whole commands, from start to end, on six images; conversions are in the cache."""
    _write_images(folder / "six", 6, size)
    (folder / "bare").mkdir()
    entry = max(cache_root().glob("openvino-*/network.xml"), key=lambda path: path.parent.stat().st_mtime)
    bare = [sys.executable, "-c", BARE_OPENVINO, str(entry), str(folder / "six"), str(folder / "bare")]
    ours = [sys.executable, str(ROOT / "dp_basicsr" / "inference.py"), "-i", str(folder / "six"), "--overwrite"]
    ours += ["--model_path", str(folder / "net.pth")]
    works: dict[str, Callable[[], object]] = {"bare OpenVINO script": partial(_run, bare)}
    for name in engines:
        works[f"--engine {name}"] = partial(_run, [*ours, "-o", str(folder / name), "--engine", name])
    seconds = in_turns(works, rounds)
    images = {
        name: [cv2.imread(str(path)) for path in sorted((folder / name).iterdir())] for name in ("bare", *engines)
    }
    worst = max(
        int(np.abs(one.astype(int) - other.astype(int)).max())  # type: ignore[union-attr]
        for name in engines
        for one, other in zip(images["bare"], images[name], strict=True)
    )
    title = f"Inference, six images of {size} x {size} pixels, x4, start to end of the command"
    return compare(title, seconds, None, f"{note} Results differ by at most {worst} of 255.")


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def _write_images(folder: Path, count: int, size: int) -> list[np.ndarray]:
    """Write smooth random images, and return them in RGB."""
    folder.mkdir()
    random, images = np.random.default_rng(0), []
    for number in range(count):
        coarse = random.integers(0, 256, (size // 7 + 1, size // 7 + 1, 3), dtype=np.uint8)
        images.append(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))
        cv2.imwrite(str(folder / f"{number}.png"), images[-1][:, :, ::-1])
    return images
