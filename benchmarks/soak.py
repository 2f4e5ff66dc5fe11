"""Train for minutes and fit the slope of what must not grow: memory, file descriptors, threads, iteration time."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from dp_basicsr.data.preparation.extract import Window
from dp_basicsr.errors import EXIT_RETRY

import numpy as np
import psutil

from benchmarks.data import HR, LR, our_step, write_photographs
from benchmarks.measure import ROOT, Settings, Table
from benchmarks.validation import write_pairs

# Record format -> the dataset that reads it.
FORMS = {"raw": "PairedRawDataset", "png": "PairedImageDataset"}

# Iterations between validations and checkpoints, and between log lines.
EVERY, LINE = 200, 10

# Small networks, for thousands of iterations in minutes.
NETWORKS = (
    "network_g={type: RRDBNetDP, scale: 4, num_feat: 8, num_block: 1, num_grow_ch: 4}",
    "network_d={type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 4}",
    "datasets:train:gt_size=32",
    "train:perceptual_opt={type: DPLoss, vgg_type: vgg11, vgg_layer_weights: {conv2_1: 1}, vgg_weights: random, "
    "resnet_type: resnet18, resnet_layer_weights: {layer1: 1}, resnet_weights: random}",
)
UNITS = {"memory": "MB", "file descriptors": "", "threads": "", "iteration": "ms"}


class Sample(NamedTuple):
    """One measurement of a run: process and loader workers together."""

    seconds: float
    iteration: int
    memory: float  # MB, without mapped files
    descriptors: int
    threads: int


def prepare(folder: Path, form: str) -> list[str]:
    """Write training LMDBs of ``form`` and validation pairs into ``folder``; return the overrides that use them."""
    if not (folder / "HR").exists():
        write_pairs(folder, [(24, 32), (32, 24)])
        write_photographs(folder / "HR", 2, (240, 320))
    our_step(folder / "HR", Window(160, 80), form, folder / form)
    return [f"datasets:train:dataroot_gt={folder / form}/{HR}.lmdb", f"datasets:train:type={FORMS[form]}",
            f"datasets:train:dataroot_lq={folder / form}/{LR}.lmdb",
            "datasets:train:num_worker_per_gpu=2", "datasets:train:dataset_enlarge_ratio=100",
            f"datasets:val:dataroot_gt={folder}/gt", f"datasets:val:dataroot_lq={folder}/lq"]  # fmt: skip


def train_command(*overrides: str, options: str = "train_demo.yml") -> list[str]:
    """Return the command that trains with a shipped option file and overrides."""
    return [sys.executable, str(ROOT / "dp_basicsr/train.py"), "-opt", str(ROOT / "options" / options), "--force_yml",
            *overrides]  # fmt: skip


def watch(folder: Path, form: str, data: list[str], minutes: float) -> list[Sample]:
    """Train for ``minutes`` after the first validation and checkpoint, sampling 200 times, or once per second.

    Raises:
        RuntimeError: The run does not start, or does not stop as expected.
    """
    often = [f"val:val_freq={EVERY}", f"logger:save_checkpoint_freq={EVERY}", f"logger:print_freq={LINE}",
             "logger:keep_last=2", "train:total_iter=1000000000", f"name=soak_{form}"]  # fmt: skip
    with (folder / f"{form}.txt").open("w+") as output:
        run = subprocess.Popen(train_command(*NETWORKS, *data, *often), cwd=folder, stdout=output, stderr=output)
        samples: list[Sample] = []
        try:
            while run.poll() is None and not list(folder.glob(f"experiments/soak_{form}/training_states/*.sha256")):
                time.sleep(0.1)
            log = next(folder.glob(f"experiments/soak_{form}/*.log"), Path())
            end = time.monotonic() + 60 * minutes
            while run.poll() is None and time.monotonic() < end:
                memory, descriptors, threads, main = 0, 0, 0, psutil.Process(run.pid)
                for process in (main, *main.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):  # a worker has just ended
                        usage = process.memory_info()
                        memory += usage.rss - usage.shared
                        threads += process.num_threads()
                        descriptors += process.num_fds()
                iteration = int(re.findall(r"iter:\s*([\d,]+)", log.read_text(encoding="utf-8"))[-1].replace(",", ""))
                samples.append(Sample(time.monotonic(), iteration, memory / 2**20, descriptors, threads))
                time.sleep(max(1, 60 * minutes / 200))
            run.send_signal(signal.SIGTERM)
            code = run.wait(timeout=300)
        finally:
            run.kill()
        if code != EXIT_RETRY or len(samples) < 3:
            output.seek(0)
            raise RuntimeError(f"the run ended with {code} after {len(samples)} samples:\n{output.read()[-2000:]}")
    return samples


def slopes(samples: list[Sample]) -> dict[str, tuple[float, float, float]]:
    """Return the start, the end and the slope per 1000 iterations of each quantity, by least squares."""
    seconds, iterations, *quantities = np.array(samples, dtype=float).T
    moves = np.flatnonzero(np.diff(iterations, prepend=-1))  # samples with a new log line
    series = [quantity[moves] for quantity in quantities]
    series.append(1000 * np.diff(seconds[moves], prepend=np.nan) / np.diff(iterations[moves], prepend=np.nan))
    fitted = {}
    for name, values in zip(UNITS, series, strict=True):
        known = np.isfinite(values)
        x, y = iterations[moves][known] / 1000, values[known]
        # The second half alone, because workers restarted after the first epoch take a little more, once.
        slope = np.polyfit(x[len(x) // 2 :], y[len(y) // 2 :], 1)[0]
        third = max(1, len(y) // 3)
        fitted[name] = (float(y[:third].mean()), float(y[-third:].mean()), float(slope))
    return fitted


def measure(settings: Settings) -> list[Table]:
    """Return one table per record format."""
    tables = []
    with tempfile.TemporaryDirectory() as name:
        for form in FORMS:
            samples = watch(Path(name), form, prepare(Path(name), form), settings.minutes)
            rows = [
                (quantity, f"{start:.4g} {unit}", f"{end:.4g} {unit}", f"{slope:+.2g} {unit}")
                for (quantity, (start, end, slope)), unit in zip(slopes(samples).items(), UNITS.values(), strict=True)
            ]
            header = ("", "first third", "last third", "slope per 1000 iterations, second half")
            iterations = samples[-1].iteration - samples[0].iteration
            title = f"Soak, {form} records: {iterations} iterations in {settings.minutes:g} minutes"
            note = f"Process and 2 loader workers; validation and checkpoint every {EVERY} iterations; keep_last: 2."
            tables.append(Table(title, header, rows, {"samples": samples}, note))
    return tables
