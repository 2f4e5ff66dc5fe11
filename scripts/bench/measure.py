"""How the benchmark measures: candidates in turns, the device's work included, peak memory in a process of its own."""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]

# Rounds that are not counted: cuDNN chooses its kernels in the first ones.
WARM_UP = 3 if torch.cuda.is_available() else 1

Work = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    quick: bool = False  # tiny networks and images, to see that everything runs: the figures mean nothing
    rounds: int = 5
    batches: tuple[int, ...] = (4, 16)
    compile: bool = False  # also torch.compile, whose first step takes a CPU many minutes


@dataclass(frozen=True)
class Table:
    """What a benchmark has found: cells for people, and the figures that they come from."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def in_turns(
    candidates: Mapping[str, Any], rounds: int, timer: Callable[[Any], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after rounds that are not counted.

    Every round runs all of them, and starts with another one, so that what else the machine does hits all alike.

    Args:
        candidates: what is done in a round, by name: work for the timer.
        rounds: that count.
        timer: does the work and gives its seconds, see :func:`seconds_of`, which is the default.
    """
    timer = timer or seconds_of
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-WARM_UP, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = timer(candidates[name])
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def seconds_of(work: Work) -> float:
    """Seconds from when ``work`` starts until it and what it has given to the GPU are done."""
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


def compare(
    title: str, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float] | None = None, note: str = ""
) -> Table:
    """Lay candidates side by side: median, ratio to the first one round by round (median, smallest, largest), peak MB.

    Args:
        title: what they all did.
        seconds: from :func:`in_turns`; the first is what the others are compared with.
        memory: from :func:`peak_memory`, of as many as were measured.
        note: what else is to be said.
    """
    memory = memory or {}
    base = next(iter(seconds.values()))
    rows, figures = [], {}
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(times, base, strict=True)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        figures[name] = {
            "seconds": list(times), "ratio": ratio, "ratio_min": low, "ratio_max": high, "peak_mb": memory.get(name)
        }  # fmt: skip
        peak = f"{memory[name]:.0f} MB" if name in memory else ""
        rows.append((name, f"{statistics.median(times):.4g} s", f"{ratio:.3g} ({low:.3g} to {high:.3g})", peak))
    header = ("", "median", "time / first's (smallest to largest)", "peak memory")
    rounds = f"{len(base)} rounds in turns. {note}".strip()
    return Table(title, header, rows, figures, rounds)


def peak_memory(module: str, *arguments: str) -> float:
    """Peak memory in MB of ``python -m scripts.bench.<module> <arguments>``, which prints :func:`own_peak` at its end.

    A process reports the most it has ever had: each candidate needs its own.
    """
    command = [sys.executable, "-m", f"scripts.bench.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def own_peak() -> float:
    """Peak memory of this process in MB: of the GPU's where there is one, otherwise all that it held in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would hand a child on Linux the peak of the process that started it
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes
