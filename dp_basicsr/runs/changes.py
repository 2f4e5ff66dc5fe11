"""What a run changes: its options beside the shipped file that differs least, and beside its previous start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dp_basicsr.errors import shorten
from dp_basicsr.options import USED_OPTIONS, read_options
from dp_basicsr.options.schema import OptionFile
from dp_basicsr.utils.arguments import SHIPPED


def describe_changes(options: OptionFile, root: Path) -> Iterator[str]:
    """Yield what differs from the nearest shipped training file, and from the previous start, as ``root`` has it."""
    now, shipped = _flat(options.as_dict()), _shipped()
    own = "datasets:"  # the data are each user's own
    by_name = {name: [text for text in _differences(flat, now) if own not in text] for name, flat in shipped.items()}
    name = min(by_name, key=lambda name: len(by_name[name]), default=None)
    if name is not None:
        yield f"Options beside {name}: {shorten(_differences(shipped[name], now), 12) or 'the same'}"
    try:
        before = _flat(json.loads((root / USED_OPTIONS).read_text(encoding="utf-8")))
    # The first start of this name, or a file that another program wrote.
    except (OSError, ValueError, AttributeError):
        return
    yield f"Options beside the previous start: {shorten(_differences(before, now), 12) or 'the same'}"


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    files = {path.name: read_options(path) for path in sorted(SHIPPED.glob("*.yml"))}
    # Completed with defaults like the run's options, so that a key left out is no difference.
    return {name: _flat(OptionFile.of(opt).as_dict()) for name, opt in files.items() if "train" in opt}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their paths, as ``--force_yml`` writes them."""
    if not isinstance(value, dict):
        return {path: value}
    inner = [_flat(item, f"{path}:{key}" if path else str(key)) for key, item in value.items()]
    return {key: item for part in inner for key, item in part.items()}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name each value that differs, and what it was."""
    # Every run has its own name, which says nothing about what changed.
    keys = [key for key in dict.fromkeys([*now, *before]) if key != "name" and now.get(key) != before.get(key)]
    return [f"{key} {now.get(key)} ({before.get(key)})" for key in keys]
