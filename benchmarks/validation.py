"""Compare our validation with BasicSR's loop on the same images, with the metrics of the shipped options."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401  (the three register their members)

import cv2
import numpy as np
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from torch.utils.data import DataLoader

from benchmarks.measure import Settings, Table, Work, compare, in_turns, own_peak, photograph, read_shipped

BASICSR = "BasicSR's loop"
OURS = "ours, 2 threads"

# LR (height, width) in several shapes, about the size of Set14's.
SIZES = [(120, 128), (90, 144), (128, 96), (64, 64), (125, 90), (72, 128)]

# For peak memory: the size of the image, and each candidate's `val:` options.
BIG = (384, 384)
CANDIDATES: dict[str, dict[str, Any]] = {BASICSR: {}, OURS: {}, "ours, tile: 128": {"tile": 128}}

FILES = {"generator": "train_esrgan_dp.yml", "SRResNet": "train_srgan_dp.yml"}


def write_pairs(folder: Path, sizes: list[tuple[int, int]]) -> DataLoader:
    """Write photographs of ``sizes`` (LR pixels) and their originals, x4; return their loader."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        gt = photograph(rng, 4 * height, 4 * width)
        for name, image in (("gt", gt), ("lq", cv2.resize(gt, (width, height), interpolation=cv2.INTER_AREA))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    options = {
        "name": "pairs", "type": "PairedImageDataset", "phase": "val", "scale": 4, "io_backend": {"type": "disk"},
        "dataroot_gt": str(folder / "gt"), "dataroot_lq": str(folder / "lq"),
    }  # fmt: skip
    return build_dataloader(build_dataset(options), options)


def prepare(candidate: str, network: str, folder: Path, loader: DataLoader, quick: bool) -> tuple[Any, Work]:
    """Build a model with the option file's PSNR and SSIM, and return it with its validation of all images."""
    opt = read_shipped(FILES[network], is_train=False)
    if quick:
        opt["network_g"] |= {"num_feat": 8, "num_block": 1}
    pixels = ("calculate_psnr", "calculate_ssim")
    metrics = {name: entry for name, entry in opt["val"]["metrics"].items() if entry["type"] in pixels}
    opt["path"] = {"visualization": str(folder / "results")}
    opt["val"] |= {"metrics": metrics, "pbar": False, "suffix": None} | CANDIDATES[candidate]
    model = build_model(opt)
    validate = SRModel.nondist_validation if candidate == BASICSR else type(model).validation
    return model, partial(validate, model, loader, 0, None, True)


def measure(settings: Settings) -> list[Table]:
    """Measure the seconds per set with each generator, and the peak memory on one large image, untiled and tiled."""
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loader = write_pairs(folder, [(20, 24), (24, 16)] if settings.quick else SIZES)
        for network in FILES:
            theirs, their_work = prepare(BASICSR, network, folder, loader, settings.quick)
            ours, our_work = prepare(OURS, network, folder, loader, settings.quick)
            ours.net_g.load_state_dict(theirs.net_g.state_dict())
            seconds = in_turns({BASICSR: their_work, OURS: our_work}, min(settings.rounds, 3))
            same = theirs.metric_results == ours.validator.results
            note = f"{len(loader)} images; metrics {'bit-identical' if same else 'DIFFER'}."
            tables.append(compare(f"Validation, {network}: network, PSNR and SSIM, PNG files", seconds, None, note))
    if not settings.quick:
        peaks = {}
        for name in CANDIDATES:
            # A process reports its peak since its start, so each candidate needs its own process.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peaks[name] = pool.submit(peak_of, name).result()
        rows = [(name, f"{peak:.0f} MB") for name, peak in peaks.items()]
        title = f"Validation, peak memory on an image of {BIG[1]} x {BIG[0]} LR pixels"
        tables.append(Table(title, ("", "peak memory"), rows, {name: {"peak_mb": peaks[name]} for name in peaks}))
    return tables


def peak_of(candidate: str) -> float:
    """Validate one large image as one candidate, and return the peak memory of this process."""
    with tempfile.TemporaryDirectory() as name:
        _, validate = prepare(candidate, "generator", Path(name), write_pairs(Path(name), [BIG]), False)
        validate()
        return own_peak()
