"""Compare the data path with BasicSR's, per core: training samples, and the preparation in three steps."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dp_basicsr.data.paired_raw_dataset  # noqa: F401  (registers it)
from dp_basicsr.data.preparation.subimages import Window, subimage_key, window_corners
from dp_basicsr.data.seeded import SeededDataset
from dp_basicsr.data.sources import find_sources

import cv2
import numpy as np
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize
from numpy.typing import NDArray

from scripts.bench.measure import ROOT, Settings, Table, Work, compare

BASICSR = "BasicSR's three steps"
OUR_FORMS = {
    "extract_subimages.py, PNG records": "png",
    "extract_subimages.py --lmdb raw": "raw",
}
FOLDERS = ("basicsr", "png", "raw")  # output folder of each
SCALE = 4
RAW_ROUNDS = 20


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in OpenCV and torch inside the block."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def core_seconds(work: Work) -> float:
    """Return the CPU seconds of ``work``, including child processes that it waits for.

    Other load on the machine and the number of workers hardly affect them.
    """

    def taken() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = taken()
    work()
    return taken() - start


def cores_in_turns(candidates: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return ``core_seconds`` of each candidate in each round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, work in candidates.items():
            seconds[name].append(core_seconds(work))
    return {name: taken[1:] for name, taken in seconds.items()}


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write noise at all scales, stronger at larger ones, which PNG compresses like a photograph (to 0.6)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    height, width = size
    for number in range(count):
        image = np.full((height, width, 3), 128, np.float32)
        for octave in range(8):
            coarse = rng.normal(0, 5 * 1.6**octave / 2, (height // 2**octave + 1, width // 2**octave + 1, 3))
            image += cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:04d}.png"), np.clip(image, 0, 255).astype(np.uint8))


def basicsr_steps(hr: Path, window: Window, output: Path) -> None:
    """Extract PNG sub-images, downsample them to PNG files and pack both, as BasicSR's scripts do."""
    folders = {name: output / name for name in ("HR_sub", "LR_bicubic_X4_sub")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for path in sorted(hr.iterdir()):
        image = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        for index, (y, x) in enumerate(window_corners(image.shape, window)):
            tile = np.ascontiguousarray(image[y : y + window.crop, x : x + window.crop])
            name = f"{subimage_key(path.stem, index)}.png"
            cv2.imwrite(str(folders["HR_sub"] / name), tile, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    for path in sorted(folders["HR_sub"].iterdir()):
        tile = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).astype(np.float32) / 255
        lr = (imresize(tile, 1 / SCALE) * 255).round().clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folders["LR_bicubic_X4_sub"] / path.name), lr, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name, folder in folders.items():
            paths = sorted(path.name for path in folder.iterdir())
            make_lmdb_from_imgs(str(folder), f"{output / name}.lmdb", paths, [Path(name).stem for name in paths])


def our_step(hr: Path, window: Window, form: str, output: Path) -> None:
    """Run our command, which does all steps; includes its start and its worker."""
    sizes = ["--crop-size", str(window.crop), "--step", str(window.step), "--workers", "1", "--lmdb", form]
    command = [sys.executable, str(ROOT / "scripts/extract_subimages.py"), "--input", str(hr), "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *sizes], env=environment, check=True, capture_output=True)


def on_new_output(work: Callable[[Path], None], output: Path) -> None:
    """Delete ``output`` and run ``work``."""
    shutil.rmtree(output, ignore_errors=True)
    work(output)


def pixels(place: Path) -> list[NDArray[np.uint8]]:
    """Read all images of a folder or LMDB, ordered by name."""
    return [source.read() for source in find_sources(place)]


def largest_difference(first: Path, second: Path) -> int:
    """Return the largest pixel difference between two folders or LMDBs of the same images."""
    pairs = zip(pixels(first), pixels(second), strict=True)
    return max(int(np.abs(one.astype(int) - other).max()) for one, other in pairs)


def measure_preparation(settings: Settings, root: Path, window: Window) -> Table:
    """Time the preparation from HR images to LMDBs of sub-images and their LR; the outputs stay in ``root``."""
    count, size = (2, (96, 128)) if settings.quick else (4, (1356, 2040))
    write_photographs(root / "HR", count, size)
    works = {BASICSR: partial(basicsr_steps, root / "HR", window)}
    works |= {name: partial(our_step, root / "HR", window, form) for name, form in OUR_FORMS.items()}
    outputs = {name: root / folder for name, folder in zip(works, FOLDERS, strict=True)}
    fresh = {name: partial(on_new_output, work, outputs[name]) for name, work in works.items()}
    seconds = cores_in_turns(fresh, min(settings.rounds, 3))
    hr, lr = (
        max(largest_difference(outputs[BASICSR] / name, outputs[ours] / name) for ours in OUR_FORMS)
        for name in ("HR_sub.lmdb", "LR_bicubic_X4_sub.lmdb")
    )
    tiles = len(find_sources(outputs[BASICSR] / "HR_sub.lmdb"))
    note = (
        f"Core seconds; {count} images of {size[1]} x {size[0]}, {tiles} sub-images. Differences from BasicSR: HR "
        f"at most {hr}, LR {lr} (rounded twice, like MATLAB)."
    )
    return compare("Preparation: sub-images, LR x4 and LMDBs, per core", seconds, None, note)


def measure_loader(settings: Settings, root: Path) -> Table:
    """Time loading a sample, a 128 px crop of a sub-image, from the LMDBs in ``root``."""
    gt_size = 32 if settings.quick else 128
    kinds = ("PairedImageDataset", "PairedImageDataset", "PairedRawDataset")
    theirs, png, raw = (dataset(kind, root / name, gt_size) for kind, name in zip(kinds, FOLDERS, strict=True))
    places = range(len(raw))
    samples: dict[str, Callable[[int], Any]] = {
        "BasicSR's PairedImageDataset, its LMDB": theirs.__getitem__,
        "PairedRawDataset, raw LMDB": raw.__getitem__,
        "PairedImageDataset, as train.py seeds it": partial(seeded_sample, SeededDataset(theirs, 0)),
        "PairedRawDataset, as train.py seeds it": partial(seeded_sample, SeededDataset(raw, 0)),
    }
    # Raw samples are so fast that noise would dominate a single pass over the set.
    times = {name: RAW_ROUNDS if name.startswith("PairedRaw") else 1 for name in samples}
    rounds = cores_in_turns(
        {name: partial(take, sample, times[name] * list(places)) for name, sample in samples.items()}, settings.rounds
    )
    seconds = {name: [taken / times[name] / len(raw) for taken in rounds[name]] for name in samples}
    both = SeededDataset(png, 0), SeededDataset(raw, 0)
    same = all(equal(seeded_sample(both[0], place), seeded_sample(both[1], place)) for place in places)
    note = f"Core seconds per sample, {len(raw)} sub-images; samples {'bit-identical' if same else 'DIFFER'}."
    return compare(f"Loader: {gt_size} px crop of a sub-image, per core", seconds, None, note)


def dataset(kind: str, root: Path, gt_size: int) -> Any:
    """Build a training set on the LMDBs in ``root``."""
    return build_dataset(
        {
            "name": kind, "type": kind, "phase": "train", "scale": SCALE, "gt_size": gt_size,
            "io_backend": {"type": "lmdb"}, "use_hflip": True, "use_rot": True,
            "dataroot_gt": str(root / "HR_sub.lmdb"), "dataroot_lq": str(root / "LR_bicubic_X4_sub.lmdb"),
        }
    )  # fmt: skip


def seeded_sample(seeded: SeededDataset, place: int) -> dict[str, Any]:
    """Return the sample of image ``place`` at this position of the first epoch."""
    return seeded[0, place, place]


def take(sample: Callable[[int], Any], places: Sequence[int]) -> None:
    """Load the samples of ``places`` in order."""
    for place in places:
        sample(place)


def equal(png: dict[str, Any], raw: dict[str, Any]) -> bool:
    """Whether BasicSR's float32 and our uint8 samples have the same pixels, bit for bit."""
    return all(torch.equal(png[name], raw[name].float() / 255) for name in ("lq", "gt"))


def measure(settings: Settings) -> list[Table]:
    """Measure the preparation and the loader on generated images."""
    window = Window(48, 24) if settings.quick else Window()
    with tempfile.TemporaryDirectory() as name, one_thread():
        return [measure_preparation(settings, Path(name), window), measure_loader(settings, Path(name))]
