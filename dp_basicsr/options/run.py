"""The options of one run: those of its file, and what its start adds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_basicsr.options.schema import OptionFile


@dataclass(frozen=True)
class Folders:
    """The folders of a run."""

    root: Path  # ``experiments/<name>`` or ``results/<name>``; the log is in it
    models: Path  # networks of the checkpoints
    training_states: Path  # what else resuming needs
    visualization: Path  # images of validations and tests

    @classmethod
    def under(cls, root: Path) -> Folders:
        """Return BasicSR's folders."""
        return cls(root, root / "models", root / "training_states", root / "visualization")


@dataclass(frozen=True)
class RunOptions:
    """The options of one run. BasicSR's builders and models get ``as_dict()``."""

    options: OptionFile  # those of the file, as overridden
    is_train: bool  # whether train.py runs
    num_gpu: int  # GPUs of this process, a number also for ``auto``; 0 for the CPU
    manual_seed: int  # drawn if the options name none
    folders: Folders  # where it writes
    dist: bool = False  # whether this is one of several processes
    rank: int = 0  # number of this process
    world_size: int = 1  # number of processes
    auto_resume: bool = False  # whether to resume from the newest checkpoint
    check: bool = False  # whether only to check and try (``--check``)
    missing: tuple[str, ...] = ()  # messages about files that are missing, and that a trial can do without
    notes: tuple[str, ...] = ()  # what the options ask for and the run will not do

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's figures, beside ``experiments/``."""
        return self.folders.root.parents[1] / "tb_logger" / self.options.name

    def as_dict(self) -> dict[str, Any]:
        """Return a new mapping as BasicSR's programs complete it, for its builders and models."""
        opt = self.options.as_dict()
        for key, dataset in opt["datasets"].items():
            # BasicSR's datasets read both from their own options.
            dataset |= {"phase": key.split("_")[0], "scale": self.options.scale}
        root, kind = str(self.folders.root), "experiments" if self.is_train else "results"
        opt["path"] |= {f"{kind}_root": root, "log": root, "visualization": str(self.folders.visualization)}
        if self.is_train:
            opt["path"] |= {name: str(getattr(self.folders, name)) for name in ("models", "training_states")}
            opt["path"].setdefault("resume_state", None)
        return opt | {
            "is_train": self.is_train,
            "num_gpu": self.num_gpu,
            "manual_seed": self.manual_seed,
            "root_path": str(self.folders.root.parents[1]),
            "dist": self.dist,
            "rank": self.rank,
            "world_size": self.world_size,
            "auto_resume": self.auto_resume,
        }
