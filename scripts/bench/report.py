"""Format the benchmark's tables as Markdown and JSON, with a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dp_basicsr import __version__

import torch

from scripts.bench.measure import Table


def machine() -> dict[str, str]:
    """Return the hardware and versions that the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "CPU": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "GPU": gpu,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "dp_basicsr": __version__,
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def markdown(where: dict[str, str], tables: Sequence[Table]) -> str:
    """Format the machine and all tables as Markdown."""
    lines = ["; ".join(f"{key} {value}" for key, value in where.items())]
    for table in tables:
        lines += ["", f"**{table.title}**", ""]
        lines += [f"| {' | '.join(row)} |" for row in (table.header, ("---",) * len(table.header), *table.rows)]
        lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def write(where: dict[str, str], tables: Sequence[Table], folder: Path, name: str = "bench") -> None:
    """Write ``<name>.md`` and ``<name>.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(where, tables), encoding="utf-8")
    content = {"machine": where, "tables": [asdict(table) for table in tables]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
