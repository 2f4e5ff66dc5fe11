"""Time candidates in turns, including the device's work, and measure their peak memory."""

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


def in_turns(
    candidates: Mapping[str, Any], rounds: int, timer: Callable[[Any], float] | None = None
) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round, after the warm-up rounds.

    Every round runs all candidates, starting with a different one, so that other load on the machine affects all alike.

    Args:
        candidates: Work for the timer, by name.
        rounds: Number of measured rounds.
        timer: Does the work and returns its seconds; default: ``seconds_of``.
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


def compare(
    title: str, seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float] | None = None, note: str = ""
) -> Table:
    """Compare candidates: median, ratio to the first one per round (median, smallest, largest), peak MB.

    Args:
        title: Title of the table.
        seconds: From ``in_turns``; the first candidate is the reference.
        memory: From ``peak_memory``, for some or all candidates.
        note: Printed below the table.
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
    """Return the peak memory in MB of ``python -m scripts.bench.<module> <arguments>``, which prints ``own_peak``.

    A process reports its peak since its start, so each candidate needs its own process.
    """
    command = [sys.executable, "-m", f"scripts.bench.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def own_peak() -> float:
    """Return the peak memory of this process in MB: the GPU's if there is one, otherwise its RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage of a child includes the parent's peak
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes
