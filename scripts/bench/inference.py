"""Compare the upscaling command with BasicSR's plain loop, from file to file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.deploy.decode import read_picture
from dp_basicsr.deploy.encode import write_picture
from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.deploy.picture import upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.utils.tiles import to_floats

import cv2
import numpy as np
import torch
from basicsr.utils import img2tensor, tensor2img

from scripts.bench.measure import Settings, Table, compare, in_turns


def plain_loop(net: torch.nn.Module, device: torch.device, source: Path, target: Path) -> None:
    """Upscale one image as BasicSR's inference script does: no_grad, whole image."""
    image = cv2.imread(str(source), cv2.IMREAD_COLOR).astype(np.float32) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        result = net(img2tensor(image).unsqueeze(0).to(device))
    cv2.imwrite(str(target), tensor2img(result))


def networks(blocks: int) -> tuple[torch.nn.Module, Upscaler]:
    """The same generator as BasicSR runs it and in our upscaler."""
    torch.manual_seed(0)
    plain = RRDBNetDP(num_block=blocks).eval()
    ours = RRDBNetDP(num_block=blocks).eval()
    ours.load_state_dict(plain.state_dict())
    upscaler = Upscaler(LoadedNetwork(ours, 4, "RRDBNetDP x4", "RRDBNetDP", "RRDBNetDP x4"))
    return plain.to(upscaler.device), upscaler


def measure(settings: Settings) -> list[Table]:
    """Seconds for a random image, x4, with the paper's generator."""
    size, blocks = (24, 1) if settings.quick else (96, 23)
    plain, upscaler = networks(blocks)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "in.png"), Path(name, "out.png")
        cv2.imwrite(str(source), pixels)
        works = {
            "BasicSR's loop": lambda: plain_loop(plain, upscaler.device, source, target),
            "ours": lambda: write_picture(upscale_picture(read_picture(source), upscaler), target),
        }
        seconds = in_turns(works, settings.rounds)
    corner = to_floats(pixels[:64, :64])
    with torch.no_grad():
        expected = plain(torch.from_numpy(corner).to(upscaler.device)).cpu().numpy()
    difference = float(np.abs(expected - upscaler._forward(corner)).max())
    note = f"{blocks} blocks, 64 features; the networks' outputs differ by at most {difference:.1e}."
    table = compare(f"Inference, {size} x {size} pixels, x4, file to file", seconds, None, note)
    table.figures["difference"] = difference
    return [table]
