"""Images per second of dp_basicsr's inference over those of BasicSR's plain loop, from file to file, interleaved."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.data.preparation.console import data_command
from dp_basicsr.deploy.files import read_picture, write_picture
from dp_basicsr.deploy.network import LoadedNetwork, NetworkSpec
from dp_basicsr.deploy.picture import upscale_picture
from dp_basicsr.deploy.tiles import to_tensor
from dp_basicsr.deploy.upscaler import Upscaler

import cv2
import numpy as np
import torch


def plain_loop(net: torch.nn.Module, device: torch.device, source: Path, target: Path) -> None:
    """One image through BasicSR's functions as its inference script strings them together: no_grad, whole image."""
    from basicsr.utils import img2tensor, tensor2img  # here: importing dp_basicsr first is what makes it importable

    image = cv2.imread(str(source), cv2.IMREAD_COLOR).astype(np.float32) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        result = net(img2tensor(image).unsqueeze(0).to(device))
    cv2.imwrite(str(target), tensor2img(result))
    _finish(device)


def compare(size: int, blocks: int, rounds: int, device: str = "auto", tile: int | None = None) -> dict[str, Any]:
    """Time both on one random image of ``size`` x ``size`` pixels (LR, x4), in turns.

    Args:
        size: pixels of the input.
        blocks: RRDBs of the network (the paper has 23), 64 features, growth 32.
        rounds: how often each is timed, after one round that is not counted.
        device: see :class:`~dp_basicsr.deploy.upscaler.Upscaler`.
        tile: likewise.

    Returns:
        Seconds of every round (``plain``, ``ours``), ``ratio`` (median of the rounds' plain / ours: images per second
        of ours over those of plain), ``spread`` (smallest and largest), ``difference`` of the networks' outputs.
    """
    torch.manual_seed(0)
    plain_net = RRDBNetDP(num_block=blocks).eval()
    spec = NetworkSpec("RRDBNetDP", 4, 64, blocks, 32)
    ours_net = RRDBNetDP(num_block=blocks).eval()
    ours_net.load_state_dict(plain_net.state_dict())
    upscaler = Upscaler(LoadedNetwork(ours_net, 4, 1, 64, str(spec), {}, spec), device=device, tile=tile)
    plain_net.to(upscaler.device)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "in.png"), Path(name, "out.png")
        cv2.imwrite(str(source), pixels)
        plain, ours = [], []
        for _ in range(rounds + 1):
            plain.append(_seconds(lambda: plain_loop(plain_net, upscaler.device, source, target)))
            ours.append(_seconds(lambda: write_picture(upscale_picture(read_picture(source), upscaler), target)))
    ratios = [one / other for one, other in zip(plain[1:], ours[1:], strict=True)]
    corner = to_tensor(pixels[:64, :64])
    with torch.no_grad():
        difference = (plain_net(corner.to(upscaler.device)).cpu() - upscaler._forward(corner)).abs().max()
    return {
        "network": str(spec), "size": size, "device": str(upscaler.device), "threads": torch.get_num_threads(),
        "tile": upscaler.tile, "plain": plain[1:], "ours": ours[1:], "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)], "difference": float(difference),
    }  # fmt: skip


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="height and width of the input")
    parser.add_argument("--blocks", type=int, default=23, help="RRDBs of the network")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--tile", type=int, help="pixels of a tile (default: what suits the device)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args(argv)
    with data_command():
        found = compare(args.size, args.blocks, args.rounds, args.device, args.tile)
    print("| network | input | device | BasicSR's loop | ours | ratio (spread) | largest difference |")
    print("|---|---|---|---|---|---|---|")
    low, high = found["spread"]
    print(
        f"| {found['network']} | {args.size} x {args.size} | {found['device']}, {found['threads']} threads "
        f"| {statistics.median(found['plain']):.2f} s | {statistics.median(found['ours']):.2f} s "
        f"| {found['ratio']:.2f} ({low:.2f} to {high:.2f}) | {found['difference']:.1e} |"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
