"""Compare the data path with BasicSR's, per core: training samples, and the preparation in three steps."""

from __future__ import annotations

import io
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import dp_basicsr.data.paired_raw_dataset  # noqa: F401  (registers it)
from dp_basicsr.data.preparation.extract import Window, subimage_key
from dp_basicsr.data.seeded import SeededDataset
from dp_basicsr.data.sources import find_sources

import cv2
import numpy as np
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize

from benchmarks.measure import Settings, Table, Work, compare, in_turns, largest_difference, photograph, run

SCALE = 4
HR, LR = "HR_sub", "LR_bicubic_X4_sub"
BASICSR, PNG, RAW = "BasicSR's three steps", "extract_subimages.py, PNG records", "extract_subimages.py --lmdb raw"
FOLDERS = {BASICSR: "basicsr", PNG: "png", RAW: "raw"}
RAW_ROUNDS = 20


def core_seconds(work: Work) -> float:
    """Return the CPU seconds of ``work`` and of processes that it waits for, which other load hardly affects."""

    def taken() -> float:
        # Not os.times, which counts in steps of 10 ms.
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = taken()
    work()
    return taken() - start


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write ``count`` photographs of ``size`` (height, width)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:04d}.png"), photograph(rng, *size))


def basicsr_steps(hr: Path, window: Window, output: Path) -> None:
    """Extract PNG sub-images, downsample them to PNG files and pack both, as BasicSR's scripts do."""
    for name in (HR, LR):
        (output / name).mkdir(parents=True)
    for path in sorted(hr.iterdir()):
        image = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        for index, (y, x) in enumerate(window.corners(image.shape)):
            tile = np.ascontiguousarray(image[y : y + window.crop, x : x + window.crop])
            name = f"{subimage_key(path.stem, index)}.png"
            cv2.imwrite(str(output / HR / name), tile, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    for path in sorted((output / HR).iterdir()):
        tile = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).astype(np.float32) / 255
        lr = (imresize(tile, 1 / SCALE) * 255).round().clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(output / LR / path.name), lr, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for folder in (output / HR, output / LR):
            paths = sorted(path.name for path in folder.iterdir())
            make_lmdb_from_imgs(str(folder), f"{folder}.lmdb", paths, [Path(name).stem for name in paths])


def our_step(hr: Path, window: Window, form: str, output: Path) -> None:
    """Run our command, which does all steps; includes its start and its worker."""
    sizes = ["--crop-size", str(window.crop), "--step", str(window.step), "--workers", "1", "--lmdb", form]
    run(["scripts/extract_subimages.py", "--input", hr, "--output", output, *sizes], OMP_NUM_THREADS="1")


def measure_preparation(settings: Settings, root: Path, window: Window) -> Table:
    """Time the preparation from HR images to LMDBs of sub-images and their LR; the outputs stay in ``root``."""
    count, size = (2, (96, 128)) if settings.quick else (4, (1356, 2040))
    write_photographs(root / "HR", count, size)

    def prepare(name: str) -> None:
        output = root / FOLDERS[name]
        shutil.rmtree(output, ignore_errors=True)
        if name == BASICSR:
            basicsr_steps(root / "HR", window, output)
        else:
            our_step(root / "HR", window, FOLDERS[name], output)

    seconds = in_turns({name: partial(prepare, name) for name in FOLDERS}, min(settings.rounds, 3), core_seconds)
    worst = {}
    for kind in (HR, LR):
        theirs, *ours = (
            [source.read() for source in find_sources(root / folder / f"{kind}.lmdb")] for folder in FOLDERS.values()
        )
        worst[kind] = max(largest_difference(theirs, images) for images in ours)
    note = (
        f"Core seconds; {count} images of {size[1]} x {size[0]}, {len(theirs)} sub-images. Differences "
        f"from BasicSR: HR at most {worst[HR]}, LR {worst[LR]} (rounded twice, like MATLAB)."
    )
    return compare("Preparation: sub-images, LR x4 and LMDBs, per core", seconds, None, note)


def measure_loader(settings: Settings, root: Path) -> Table:
    """Time loading a sample, a 128 px crop of a sub-image, from the LMDBs in ``root``."""
    gt_size = 32 if settings.quick else 128
    common = {"phase": "train", "scale": SCALE, "gt_size": gt_size, "use_hflip": True, "use_rot": True}

    def dataset(kind: str, folder: str) -> Any:
        roots = {f"dataroot_{key}": str(root / folder / f"{name}.lmdb") for key, name in (("gt", HR), ("lq", LR))}
        return build_dataset({"name": kind, "type": kind, "io_backend": {"type": "lmdb"}, **roots, **common})

    theirs, png = (dataset("PairedImageDataset", folder) for folder in ("basicsr", "png"))
    raw = dataset("PairedRawDataset", "raw")
    numbers = range(len(raw))

    def seeded(images: Any) -> Callable[[int], Any]:
        return lambda number: SeededDataset(images, 0)[0, number, number]  # epoch, place in it, image

    # Raw samples are so fast that noise would dominate a single pass over the set.
    samples: dict[str, tuple[Callable[[int], Any], int]] = {
        "BasicSR's PairedImageDataset, its LMDB": (theirs.__getitem__, 1),
        "PairedRawDataset, raw LMDB": (raw.__getitem__, RAW_ROUNDS),
        "PairedImageDataset, as train.py seeds it": (seeded(theirs), 1),
        "PairedRawDataset, as train.py seeds it": (seeded(raw), RAW_ROUNDS),
    }

    def load(candidate: tuple[Callable[[int], Any], int]) -> float:
        sample, passes = candidate
        spent = core_seconds(lambda: [sample(number) for _ in range(passes) for number in numbers])
        return spent / passes / len(raw)

    same = all(
        torch.equal(seeded(png)(number)[name], seeded(raw)(number)[name].float() / 255)
        for number in numbers
        for name in ("lq", "gt")
    )
    note = f"Core seconds per sample, {len(raw)} sub-images; samples {'bit-identical' if same else 'DIFFER'}."
    title = f"Loader: {gt_size} px crop of a sub-image, per core"
    return compare(title, in_turns(samples, settings.rounds, load), None, note)


def measure(settings: Settings) -> list[Table]:
    """Measure the preparation and the loader on generated images, with one thread in OpenCV and torch."""
    window = Window(48, 24) if settings.quick else Window()
    with ExitStack() as stack:
        for set_threads, before in ((torch.set_num_threads, torch.get_num_threads()),
                                    (cv2.setNumThreads, cv2.getNumThreads())):  # fmt: skip
            stack.callback(set_threads, before)
            set_threads(1)
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [measure_preparation(settings, root, window), measure_loader(settings, root)]
