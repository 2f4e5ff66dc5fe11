"""Profile our training step by operator."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.measure import Settings, Table
from scripts.bench.step import OURS, builders, step_of

# Operators in the table; the rest is summed in one more line.
SHOWN = 12


def measure(settings: Settings) -> list[Table]:
    """Measure each operator's share of a step's time."""
    step = step_of(builders(settings.quick)[OURS](), settings.batches[0])
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities) as profiler:
        step()
    on_gpu = torch.cuda.is_available()
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in profiler.key_averages()
    }
    calls = {event.key: event.count for event in profiler.key_averages()}
    total = sum(times.values())
    names = sorted(times, key=lambda name: -times[name])[:SHOWN]
    rows = [(name, str(calls[name]), f"{times[name]:.3f} s", f"{times[name] / total:.1%}") for name in names]
    rest = total - sum(times[name] for name in names)
    rows.append(("all others", "", f"{rest:.3f} s", f"{rest / total:.1%}"))
    title = f"Where a step goes: {OURS}, batch {settings.batches[0]}"
    return [Table(title, ("operator", "calls", "seconds", "share"), rows, {"seconds": times, "calls": calls})]
