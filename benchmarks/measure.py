"""Time candidates in turns, including the device's work, measure peak memory, and write tables."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.options import read_options

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]

# Warm-up rounds, in which cuDNN chooses its kernels.
WARM_UP = 3 if torch.cuda.is_available() else 1

Work = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Settings of the command line."""

    quick: bool = False  # tiny networks and images: checks that everything runs; meaningless figures
    rounds: int = 5
    batches: tuple[int, ...] = (4, 16)
    compile: bool = False  # include torch.compile, whose first step takes many minutes on a CPU
    minutes: float = 30  # of each run of `soak`


@dataclass(frozen=True)
class Table:
    """Results of a benchmark: formatted cells, and the figures they show."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def read_shipped(name: str, *, is_train: bool) -> dict[str, Any]:
    """Read a shipped option file for one process, on the GPU if there is one."""
    gpus = min(torch.cuda.device_count(), 1)
    process = {"num_gpu": gpus, "dist": False, "rank": 0, "world_size": 1, "is_train": is_train}
    return read_options(ROOT / "options" / name) | process


def seconds_of(work: Work) -> float:
    """Return the seconds until ``work``, including what it has queued on the GPU, is done."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def seconds_in_a_row(work: Work, times: int) -> float:
    """Return the seconds per ``work``, repeated ``times`` times after one warm-up."""
    work()
    return seconds_of(lambda: [work() for _ in range(times)]) / times


def in_turns(
    candidates: Mapping[str, Any], rounds: int, timer: Callable[[Any], float] = seconds_of
) -> dict[str, list[float]]:
    """Return the seconds of each candidate, as ``timer`` takes them, in each round after the warm-up rounds."""
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-WARM_UP, rounds):
        # Each round starts with a different candidate, so that other load on the machine affects all alike.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = timer(candidates[name])
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def compare(
    title: str, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float] | None = None, note: str = ""
) -> Table:
    """Compare candidates with the first: median, ratio per round (median, smallest, largest), and peak MB if known."""
    base, rows, figures = next(iter(seconds.values())), [], {}
    for name, times in seconds.items():
        ratios = [mine / first for mine, first in zip(times, base, strict=True)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        peak = (memory or {}).get(name)
        figures[name] = {"seconds": [*times], "ratio": ratio, "ratio_min": low, "ratio_max": high, "peak_mb": peak}
        median, shown = f"{statistics.median(times):.4g} s", "" if peak is None else f"{peak:.0f} MB"
        rows.append((name, median, f"{ratio:.3g} ({low:.3g} to {high:.3g})", shown))
    header = ("", "median", "time / first's (smallest to largest)", "peak memory")
    return Table(title, header, rows, figures, f"{len(base)} rounds in turns. {note}".strip())


def run(command: Sequence[object], **environment: str) -> str:
    """Run Python with arguments from the project's root; returns what it prints."""
    words = [sys.executable, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


def own_peak() -> float:
    """Return the peak memory of this process in MB: the GPU's if there is one, otherwise its RAM (on Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # Not getrusage: that of a child includes its parent's peak.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def largest_difference(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the largest difference between the pixels of images in two lists."""
    return max(int(np.abs(one.astype(int) - other).max()) for one, other in zip(first, second, strict=True))


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise at all scales, stronger at larger ones, which PNG compresses like a photograph (to 0.6)."""
    image = np.full((height, width, 3), 128, np.float32)
    for octave in range(8):
        coarse = rng.normal(0, 5 * 1.6**octave / 2, (height // 2**octave + 1, width // 2**octave + 1, 3))
        image += cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_report(tables: Sequence[Table], path: Path, **facts: str) -> None:
    """Print the machine and all tables as Markdown, and write them to ``<path>.md`` and ``<path>.json``."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8") if info.exists() else "")
    machine = {
        "CPU": names[0] if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "dp_basicsr": __version__,
        **facts,
    }
    lines = ["; ".join(f"{key} {value}" for key, value in machine.items())]
    for table in tables:
        lines += ["", f"**{table.title}**", "", markdown(table.header, table.rows)]
        lines += ["", table.note] if table.note else []
    text = "\n".join(lines) + "\n"
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    content = {"machine": machine, "tables": [asdict(table) for table in tables]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
