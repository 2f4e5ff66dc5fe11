"""Checkpoint manifests: ``training_states/<iteration>.sha256``, written last.

The format is that of ``sha256sum``, with paths relative to the experiment's folder, so that ``sha256sum -c
training_states/5000.sha256`` checks a checkpoint there without this program. A checkpoint is intact if every file in
its manifest exists with that checksum.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import atomic_write

SUFFIX = ".sha256"

# Excludes net_g_latest.pth and the best networks of metrics.
_OF_A_CHECKPOINT = re.compile(r"net_[a-z]+_(\d+)\.pth|(\d+)\.(?:state|sha256)")

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def manifest_path(state: Path) -> Path:
    """Return the path of the manifest that belongs to a training state."""
    return state.with_suffix(SUFFIX)


def write_manifest(state: Path, checksums: Mapping[Path, str]) -> None:
    """Write the manifest of a checkpoint, from the SHA-256 of each of its files, which include the state.

    The state's line is last, so a truncated manifest is never valid.
    """
    in_order = [path for path in checksums if path != state] + [state]
    names = {path: os.path.relpath(path, state.parent.parent) for path in in_order}
    text = "".join(f"{checksums[path]}  {names[path]}\n" for path in in_order)
    atomic_write(manifest_path(state), lambda file: file.write(text.encode()))


def read_manifest(path: Path) -> dict[Path, str]:
    """Return the files of a checkpoint, all in the experiment's folder, and their checksums; or raise a UserError."""
    root = path.parent.parent
    try:
        if not path.is_file():  # reading a pipe would block
            raise OSError("not a regular file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read ({error})") from error
    # The names come from a file, so none may lead out of the experiment's folder.
    checksums = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path.name} is damaged: {line[:80]!r} is not a checksum of a file of this experiment")
        checksums[root / name] = match[1]
    if path.with_suffix(".state") not in checksums:
        raise UserError(f"{path.name} is damaged: it ends before the training state")
    return checksums


def check_manifest(path: Path) -> set[Path]:
    """Check all files of a checkpoint against its manifest, and return them; a missing or damaged one is refused."""
    checksums = read_manifest(path)
    for file, checksum in checksums.items():
        try:
            if not file.is_file():
                raise UserError(f"{file.name} is missing")
            actual = sha256_of(file)
        except OSError as error:
            raise UserError(f"{file.name} cannot be read ({error.strerror})") from error
        if actual != checksum:
            size = file.stat().st_size
            raise UserError(f"{file.name} is damaged: the checksum of its {size} bytes differs from {path.name}")
    return set(checksums)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with path.open("rb") as content:
        checksum = hashlib.sha256()
        while block := content.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def files_by_iteration(models: Path, states: Path) -> dict[int, list[Path]]:
    """Return the files of all checkpoints, complete or not, by iteration."""
    files: dict[int, list[Path]] = {}
    for path in [*models.iterdir(), *states.iterdir()]:
        if match := _OF_A_CHECKPOINT.fullmatch(path.name):
            files.setdefault(int(match[1] or match[2]), []).append(path)
    return files


def delete_older(state: Path, models: Path, keep: int) -> None:
    """Delete old checkpoints: keep the ``keep`` newest up to ``state``, which is intact, and all later ones.

    The networks of a checkpoint are deleted before its manifest, so that an interrupted deletion is completed next
    time.
    """
    files = files_by_iteration(models, state.parent)
    started = [iteration for iteration in files if (state.parent / f"{iteration}.state") in files[iteration]]
    # A file without its state is of an interrupted save or deletion, and counts as no checkpoint.
    first = sorted(iteration for iteration in started if iteration <= int(state.stem))[-max(keep, 1) :][0]
    for iteration in sorted(files):
        if iteration < first:
            for path in sorted(files[iteration], key=lambda path: (path.parent != models, path.suffix == SUFFIX)):
                path.unlink(missing_ok=True)
