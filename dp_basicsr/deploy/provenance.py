"""Where a network comes from: the run, its options, its data."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.errors import UserError
from dp_basicsr.options import read_options


def run_options(path: Path) -> dict[str, Any] | None:
    """The options of the run that wrote ``experiments/<name>/models/<path>``: the copy that training keeps there.

    Returns:
        The newest option file's content; None where there is none.
    """
    files = sorted(path.resolve().parent.parent.glob("*.yml"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files if path.resolve().parent.name == "models" else []:
        try:
            return read_options(file)
        except UserError:
            continue
    return None


def trace(path: Path, notes: dict[str, str]) -> dict[str, str]:
    """What is known about a network's training, as text.

    Args:
        path: The file of weights.
        notes: What the file says itself (an earlier export); it is kept, and wins.

    Returns:
        ``source``, ``source_sha256``, ``exported_by`` always; ``iteration``, ``options`` (JSON), ``trained_by`` and
        ``dataset_<name>`` (fingerprint of the training images) where the run's folder is there.
    """
    found = {
        "source": path.name,
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "exported_by": f"dp_basicsr {__version__}",
    }
    iteration = re.search(r"net_g_(\d+)$", path.stem)
    if iteration:
        found["iteration"] = iteration[1]
    options = run_options(path)
    if options is not None:
        found["options"] = json.dumps(options, default=str)
        found |= _trained_by(path)
        for name, dataset in options["datasets"].items():
            root = dataset.get("dataroot_gt") if isinstance(dataset, dict) else None
            if root is not None and name.split("_")[0] == "train":
                found[f"dataset_{dataset.get('name', name)}"] = fingerprint(Path(root).expanduser())
    kept = {name: value for name, value in notes.items() if name != "format"}
    if "source" in kept:  # exported before: the first source is the one that was trained
        found = {name: value for name, value in found.items() if name == "exported_by"}
    return {**found, **kept, "exported_by": found["exported_by"]}


def fingerprint(root: Path) -> str:
    """What identifies a set of images: how many, and a SHA-256 over their names and sizes.

    An LMDB is known by its ``meta_info.txt`` (name, shape and compression of every record), a folder by the names
    and lengths of its files.
    """
    meta_info = root / "meta_info.txt"
    if meta_info.is_file():
        lines = meta_info.read_text(encoding="utf-8").splitlines()
    elif root.is_dir():
        files = (path for path in root.rglob("*") if path.is_file())
        lines = sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files)
    else:
        return f"{root.name}: not on the machine that exported"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{root.name}: {len(lines)} images, sha256 {digest} over names and sizes"


def _trained_by(path: Path) -> dict[str, str]:
    """The version in the newest training log."""
    for log in sorted(path.resolve().parent.parent.glob("train_*.log"), reverse=True):
        version = re.search(r"dp_basicsr (\d\S*)", log.read_text(encoding="utf-8", errors="replace")[:4000])
        if version:
            return {"trained_by": f"dp_basicsr {version[1]}"}
    return {}
