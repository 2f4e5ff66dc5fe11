"""The upscaling command in every engine, BasicSR's plain loop, and a bare OpenVINO script, from file to file."""

from __future__ import annotations

import sys
import tempfile
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

from benchmarks.measure import Settings, Table, Work, compare, in_turns, largest_difference, photograph, run, seconds_of

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


def one_image(net: torch.nn.Module, upscalers: dict[str, Upscaler], folder: Path, size: int, rounds: int) -> Table:
    """Compare the engines on one image, from file to file, and their values with BasicSR's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, source, target = net.to(device), folder / "in.png", folder / "out.png"
    pixels = photograph(np.random.default_rng(0), size, size)
    cv2.imwrite(str(source), pixels)

    def plain_loop() -> None:
        # As BasicSR's inference script: no_grad, whole image.
        image = cv2.imread(str(source), cv2.IMREAD_COLOR).astype(np.float32) / 255  # type: ignore[union-attr]
        with torch.no_grad():
            cv2.imwrite(str(target), tensor2img(net(img2tensor(image).unsqueeze(0).to(device))))

    works: dict[str, Work] = {"BasicSR's loop": plain_loop}

    def ours(upscaler: Upscaler) -> None:
        write_picture(upscale_picture(read_picture(source), upscaler), target)

    works |= {f"--engine {name}": partial(ours, upscaler) for name, upscaler in upscalers.items()}
    corner = to_floats(pixels[:64, :64, ::-1])
    with torch.no_grad():
        expected = net(torch.from_numpy(corner).to(device)).cpu().numpy()
    differences = {name: float(np.abs(made.engine(corner) - expected).max()) for name, made in upscalers.items()}
    title = f"Inference, {size} x {size} pixels, x4, file to file in a running process"
    note = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    table = compare(title, in_turns(works, rounds), None, f"Largest difference from BasicSR's output: {note}.")
    table.figures["difference"] = differences
    return table


def six_images(engines: list[str], folder: Path, size: int, rounds: int) -> Table:
    """Compare whole commands, from start to end, on six images; conversions are in the cache."""
    rng = np.random.default_rng(0)
    (folder / "six").mkdir()
    (folder / "bare").mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"six/{number}.png"), photograph(rng, size, size))
    cache = cache_root()
    assert cache is not None, "the conversions above were written somewhere"
    entry = max(cache.glob("openvino-*/network.xml"), key=lambda path: path.parent.stat().st_mtime)
    commands = {"bare OpenVINO script": ["-c", BARE_OPENVINO, entry, folder / "six", folder / "bare"]}
    ours = ["dp_basicsr/inference.py", "-i", folder / "six", "--overwrite", "--model_path", folder / "net.pth"]
    commands |= {f"--engine {name}": [*ours, "-o", folder / name, "--engine", name] for name in engines}
    seconds = in_turns(commands, rounds, lambda command: seconds_of(partial(run, command)))
    folders = [sorted((folder / name).iterdir()) for name in ("bare", *engines)]
    bare, *images = ([cv2.imread(str(path)) for path in paths] for paths in folders)
    worst = max(largest_difference(bare, upscaled) for upscaled in images)
    title = f"Inference, six images of {size} x {size} pixels, x4, start to end of the command"
    return compare(title, seconds, None, f"Results differ by at most {worst} of 255.")


def measure(settings: Settings) -> list[Table]:
    """Measure seconds with the paper's generator, x4: one image in a running process, and six from start to end."""
    torch.manual_seed(0)
    net = RRDBNetDP(num_block=1 if settings.quick else 23).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"params": net.state_dict()}, folder / "net.pth")
        upscalers = {}
        for engine in get_args(EngineName):
            if engine == "auto":
                continue
            device = "auto" if engine == "torch" else "cpu"
            try:
                upscalers[engine] = Upscaler(open_engine([folder / "net.pth"], engine=engine, device=device))
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
        tables = [one_image(net, upscalers, folder, 24 if settings.quick else 128, settings.rounds)]
        if "openvino" in upscalers:
            engines = ["openvino"] if settings.quick else list(upscalers)
            tables.append(six_images(engines, folder, 12 if settings.quick else 70, settings.rounds))
    return tables
