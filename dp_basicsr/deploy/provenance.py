"""Find out where a network comes from: its run, options and data. Only facts of this project's own runs are taken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.archs.open_network import options_of_run
from dp_basicsr.options import Options

# What is published of an option file. Paths, logger and keys of no section are left out.
_TOP = ("name", "model_type", "scale", "manual_seed", "deterministic", "network_g", "network_d")
_TRAIN_SET = ("name", "type", "gt_size", "batch_size_per_gpu", "batch_size_total", "use_hflip", "use_rot", "color")
# Facts of an earlier export that the next one keeps.
_KEPT = ("source", "source_sha256", "iteration", "trained_by", "interpolation")
# What the header of any file says of its owner; ``modelspec.`` is Stability AI's form.
_OWNER = ("author", "license", "modelspec.author", "modelspec.license")
_SECRET = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)


def trace(path: Path, notes: dict[str, str]) -> dict[str, str]:
    """Return what is known about a network's training, as text.

    ``notes`` are what its file says about itself. Facts of an earlier export by this project are kept, and win.

    Returns:
        ``source``, ``source_sha256``, ``exported_by`` always; ``author`` and ``license`` if the file has them;
        ``iteration`` if the name has it. ``options`` (JSON), ``trained_by`` and ``dataset_<name>`` (fingerprint of the
        training images) if a run of this project wrote it.
    """
    is_ours = notes.get("exported_by", "").startswith("dp_basicsr ")
    # Of other programs' metadata, only the owner is passed on.
    earlier = {name.removeprefix("modelspec."): value for name, value in notes.items()
               if name in ("interpolation", *_OWNER)
               or (is_ours and (name in _KEPT or name.startswith("dataset_")))}  # fmt: skip
    if is_ours:
        # The metadata of a file may say anything: what is not understood is left out.
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            published = publishable(json.loads(notes.get("options", "")))
            earlier |= {"options": json.dumps(published)} if {"name", "model_type"} <= published.keys() else {}
    exported_by = {"exported_by": f"dp_basicsr {__version__}"}
    if "source" in earlier:
        # Exported before: the first source is the one that was trained.
        return earlier | exported_by
    facts = {"source": path.name, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if iteration := re.search(r"net_g_(\d+)$", path.stem):
        facts["iteration"] = iteration[1]
    options = options_of_run(path)
    logs = sorted(path.resolve().parent.parent.glob("train_*.log"), reverse=True) if options else []
    # A run logs its version among its first lines.
    heads = (log.read_text(encoding="utf-8", errors="replace")[:4000] for log in logs)
    versions = (match[0] for head in heads if (match := re.search(r"dp_basicsr \d\S*", head)))
    if options and (version := next(versions, "")):
        facts |= {"trained_by": version, "options": json.dumps(publishable(options), default=str)}
        for phase, dataset in options["datasets"].items():
            root = dataset.get("dataroot_gt") if isinstance(dataset, dict) else None
            if str(phase).split("_")[0] == "train" and isinstance(root, str):
                with contextlib.suppress(OSError):
                    facts[f"dataset_{dataset.get('name', phase)}"] = fingerprint(Path(root).expanduser())
    return facts | earlier | exported_by


def publishable(options: Options) -> dict[str, Any]:
    """Return the known options that describe the training, without paths and secrets."""
    from dp_basicsr.options.schema import Train  # pydantic

    chosen = {key: options[key] for key in _TOP if key in options}
    train, train_set = options.get("train"), (options.get("datasets") or {}).get("train")
    if isinstance(train_set, dict):
        chosen["datasets"] = {"train": {key: value for key, value in train_set.items() if key in _TRAIN_SET}}
    if isinstance(train, dict):
        chosen["train"] = {key: value for key, value in train.items() if key in Train.model_fields}
    return _clean(chosen)  # type: ignore[no-any-return]


def fingerprint(root: Path) -> str:
    """Return what identifies a set of images: their number, and a SHA-256 over names and sizes.

    For an LMDB it is taken from its ``meta_info.txt`` (name, shape and compression of every record), for a folder from
    the names and lengths of its files.
    """
    meta_info = root / "meta_info.txt"
    if meta_info.is_file():
        lines = meta_info.read_text(encoding="utf-8", errors="replace").splitlines()
    elif root.is_dir():
        files = (path for path in root.rglob("*") if path.is_file())
        lines = sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files)
    else:
        return f"{root.name}: not on the machine that exported"
    digest = hashlib.sha256("\n".join(lines).encode(errors="replace")).hexdigest()
    return f"{root.name}: {len(lines)} images, sha256 {digest} over names and sizes"


def _clean(value: Any) -> Any:
    """Remove secrets, and replace paths and addresses, at any depth."""
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return "(path)" if isinstance(value, str) and re.search(r"[/\\]", value) else value
