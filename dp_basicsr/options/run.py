"""The options of one run: those of its file, and what its start adds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_basicsr.options.schema import OptionFile


@dataclass(frozen=True)
class Folders:
    """The folders of a run.

    Attributes:
        root: ``experiments/<name>`` or ``results/<name>``; the log is in it.
        models: Networks of the checkpoints.
        training_states: What else resuming needs.
        visualization: Images of validations and tests.
    """

    root: Path
    models: Path
    training_states: Path
    visualization: Path

    @classmethod
    def under(cls, root: Path) -> Folders:
        """Return BasicSR's folders."""
        return cls(root, root / "models", root / "training_states", root / "visualization")


@dataclass(frozen=True)
class RunOptions:
    """The options of one run. BasicSR's builders and models get ``as_dict()``, and ``of`` reads it.

    Attributes:
        options: The options of the file, as overridden.
        is_train: Whether train.py runs.
        num_gpu: GPUs of this process, a number also for ``auto``; 0 for the CPU.
        manual_seed: The seed of the run, drawn if the options name none.
        folders: Where it writes.
        dist: Whether this is one of several processes.
        rank: Number of this process.
        world_size: Number of processes.
        auto_resume: Whether to resume from the newest checkpoint.
        check: Whether only to check and try (``--check``).
        missing: Messages about files that are missing, and that a trial can do without.
        notes: What the options ask for and the run will not do.
    """

    options: OptionFile
    is_train: bool
    num_gpu: int
    manual_seed: int
    folders: Folders
    dist: bool = False
    rank: int = 0
    world_size: int = 1
    auto_resume: bool = False
    check: bool = False
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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

    @classmethod
    def of(cls, opt: Mapping[str, Any]) -> RunOptions:
        """Return the options in a mapping that BasicSR's programs or ``as_dict`` completed.

        Raises:
            pydantic.ValidationError: A value is wrong, or a needed key is missing.
        """
        path, is_train = opt.get("path") or {}, opt["is_train"]
        # Tests and other programs build models from options without folders.
        root = path.get("experiments_root" if is_train else "results_root") or os.path.join("experiments", opt["name"])
        given = {name: Path(path[name]) for name in ("models", "training_states", "visualization") if path.get(name)}
        folders = Folders(**{**vars(Folders.under(Path(root))), **given})
        run = {key: opt[key] for key in ("dist", "rank", "world_size", "auto_resume") if key in opt}
        return cls(OptionFile.of(opt), is_train, opt["num_gpu"], opt.get("manual_seed") or 0, folders, **run)
