"""One history in a run's folder: what a run that goes back to an earlier state leaves behind is set aside.

Otherwise ``--auto_resume`` would continue the abandoned run, whose checkpoints have higher iterations, and
``keep_best`` would keep its network.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.manifest import files_by_iteration, sha256_of
from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import atomic_write, replacing

from basicsr.utils import get_root_logger

# File in the run's folder with the iteration that the run goes back to and the folder for what is later, while files
# are being moved. A process that is killed then leaves it, and the next start completes the move into the same folder.
_MOVING = "goes_back_to"


def is_of(root: Path, state: Path) -> bool:
    """Whether a training state is in a run's folder, so that the run's earlier figures lead to it."""
    return state.resolve().parent.parent == root.resolve()


def set_aside_later(root: Path, state: Path, iteration: int, best_files: Mapping[str, str]) -> None:
    """Move the files that do not lead to ``state`` from a run's folder to ``abandoned_<time>`` in it.

    No checkpoint leads to the state of another folder. The moved ones keep their manifests, so that ``path:
    resume_state`` can name them. ``best_files`` are the SHA-256 of the best networks at that time, by name.
    """
    finish_setting_aside(root)
    last = iteration if is_of(root, state) else -1
    later = any(other > last for other in files_by_iteration(root / "models", root / "training_states"))
    best = (root / "models").glob("net_g_best_*.pth")
    if later or any(sha256_of(path) != best_files.get(path.name) for path in best):
        aside = _new_folder(root).name
        atomic_write(root / _MOVING, lambda file: file.write(f"{last} {aside}".encode()))
        finish_setting_aside(root)


def _new_folder(root: Path) -> Path:
    name = f"abandoned_{time.strftime('%Y%m%d_%H%M%S')}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(root / name for name in names if not (root / name).exists())


def finish_setting_aside(root: Path) -> None:
    """Move what is later than the iteration in ``goes_back_to``, if a run's folder has that file."""
    mark = root / _MOVING
    if not mark.is_file():
        return
    try:
        number, name = mark.read_text(encoding="utf-8").split()
        last, aside, models = int(number), root / name, root / "models"
        files = files_by_iteration(models, root / "training_states")
        later = sorted(iteration for iteration in files if iteration > last)
        # The best networks of the state itself come back by ``restore_best``.
        others = [*models.glob("net_*_latest.pth"), *models.glob("net_g_best_*.pth")]
        # Of validations: image_<iteration>.png.
        ends = {path: path.stem.rpartition("_")[2] for path in root.glob("visualization/*/*.png")}
        others += [path for path, end in ends.items() if end.isdecimal() and int(end) > last]
        for path in [*(path for iteration in later for path in files[iteration]), *others]:
            target = aside / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        mark.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"{mark}: the later checkpoints cannot be set aside: {error}") from error
    what = f"checkpoints of iterations {', '.join(map(str, later))}" if later else "best networks"
    get_root_logger().warning(f"The run goes back to an earlier state: its {what} are now in {aside}.")


def restore_best(
    root: Path, state: Path, best: Mapping[str, Mapping[str, Any]], best_files: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Make the best networks in a run's folder those of a state; they may be missing or have been replaced since.

    Those found later move to ``abandoned_<time>``. ``best`` are the state's results by set and metric, ``best_files``
    the SHA-256 of its best networks, by name. Returns the sets and metrics whose best network no longer exists.
    """
    lost, models, source = [], root / "models", state.parent.parent / "models"
    # -1: there is no best network yet.
    known = {f"net_g_best_{name}_{metric}.pth": (name, metric, figure["iter"]) for name, record in best.items()
             for metric, figure in record.items() if figure["iter"] != -1}  # fmt: skip
    regular, aside = source / f"net_g_{state.stem}.pth", _new_folder(root) / "models"
    for path in sorted(models.glob("net_g_best_*.pth")):
        checksum = sha256_of(path) if path.is_file() else ""
        # States of older versions have no checksums.
        if checksum and checksum == best_files.get(path.name, checksum if path.name in known else None):
            known.pop(path.name, None)
        elif not checksum or path.is_symlink() or (regular.is_file() and sha256_of(regular) == checksum):
            # Found by the validation of the state's own iteration, which a resumed run repeats.
            path.unlink()
        else:
            # If the resume is not exact, the run may never find it again.
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / path.name)
            get_root_logger().warning(f"{path.name}, found after the state, is now in {aside}.")
    for name, (dataset, metric, iteration) in known.items():
        copies = [*root.glob(f"abandoned_*/models/{name}"), source / name]
        same = [copy for copy in copies if copy.is_file() and sha256_of(copy) == best_files.get(name)]
        # The regular checkpoint of that iteration has the same weights.
        same += [copy for copy in [source / f"net_g_{iteration}.pth"] if copy.is_file()]
        if not same:
            lost.append((dataset, metric))
            continue
        with replacing(models / name) as temporary:
            shutil.copyfile(same[0], temporary)
    return lost
