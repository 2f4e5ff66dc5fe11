"""Save a model's checkpoints and resume from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dp_basicsr.checkpoint.manifest import delete_older, write_manifest
from dp_basicsr.checkpoint.resume import run_metadata
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.errors import UserError
from dp_basicsr.training.random_state import gather_random_states, set_random_state
from dp_basicsr.utils.atomic_io import write_checkpoint

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import master_only
from torch import nn


class CheckpointedModel(BaseModel):
    """Saves complete checkpoints or stops the run, and resumes bit-exactly.

    Checkpoints are made only between steps, when no gradient is being accumulated, so that state need not be saved.
    """

    best_metric_results: dict[str, dict[str, Any]]
    position: Mapping[str, int] = MappingProxyType({})

    def __init__(self, opt: dict[str, Any]) -> None:
        self._saved_iter: int | None = None
        self._checksums: dict[Path, str] = {}
        self._random_states: list[dict[str, Any]] = []
        super().__init__(opt)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save networks and training state in BasicSR's files, then the manifest that makes them a checkpoint.

        Collective call. An iteration that is already saved is not saved again. With ``logger: keep_last``, older
        checkpoints are deleted once this one is on the disk.

        Args:
            epoch: Epoch of this iteration.
            current_iter: The last completed iteration; -1 saves the networks as ``latest``, without a state.

        Raises:
            UserError: The write failed; raised on every process. Earlier checkpoints are intact.
        """
        if current_iter == self._saved_iter:
            return
        self._random_states = gather_random_states()
        self._checksums = {}
        save_files = super().save
        on_rank_0(lambda: save_files(epoch, current_iter))
        if current_iter != -1:
            on_rank_0(lambda: self._seal(current_iter))
            self._saved_iter = current_iter

    def _seal(self, current_iter: int) -> None:
        state = self._state_path(current_iter)
        write_manifest(state, self._checksums)
        keep = self.opt["logger"].get("keep_last")
        if keep:
            delete_older(state, Path(self.opt["path"]["models"]), keep)

    def _state_path(self, current_iter: int) -> Path:
        return Path(self.opt["path"]["training_states"], f"{current_iter}.state")

    @master_only
    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | list[str] = "params",
    ) -> None:
        """Save in BasicSR's format, ``{param_key: state_dict}``; BasicSR would ignore a failed write.

        Raises:
            UserError: See ``atomic_write``.
        """
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        states = [self.get_bare_model(bare).state_dict() for bare in nets]
        on_cpu = [{name: value.cpu() for name, value in state.items()} for state in states]
        name = "latest" if current_iter == -1 else current_iter
        path = Path(self.opt["path"]["models"], f"{net_label}_{name}.pth")
        self._checksums[path] = write_checkpoint(dict(zip(keys, on_cpu, strict=True)), path)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save everything but the networks that resuming needs; nothing for the latest model (-1).

        Raises:
            UserError: See ``atomic_write``.
        """
        if current_iter != -1:
            path = self._state_path(current_iter)
            self._checksums[path] = write_checkpoint(self.training_state(epoch, current_iter), path)

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """Return BasicSR's state and what makes resuming bit-exact, readable with ``weights_only``."""
        return {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "position": dict(self.position),
            "random": self._random_states,
            "run": run_metadata(self.opt),
            "best_metric_results": to_python(getattr(self, "best_metric_results", {})),
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restore BasicSR's state, best metrics and random states.

        With another number of processes than in the state, each process draws new random numbers.

        Raises:
            UserError: Optimizers or schedulers belong to another model. Other damage may raise any error.
        """
        for optimizer, saved in zip(self.optimizers, resume_state["optimizers"], strict=False):
            for group in saved["param_groups"]:  # fused or not is this run's choice; BasicSR's Adam is not
                group |= {name: optimizer.defaults[name] for name in ("fused",) if name in optimizer.defaults}
        before = self._structure()
        super().resume_training(resume_state)
        if not has_structure(before, self._structure()) or not all(map(has_consistent_state, self.optimizers)):
            raise UserError("its optimizers or schedulers belong to another model")
        self._saved_iter = resume_state["iter"]
        metrics = ((self.opt.get("val") or {}).get("metrics") or {}).keys()
        best = resume_state.get("best_metric_results", {})
        self.best_metric_results = {name: record for name, record in best.items() if record.keys() == metrics}
        states = resume_state.get("random", [])
        if len(states) == self.opt["world_size"]:
            set_random_state(states[self.opt["rank"]])
        else:
            own = self.opt["rank"] + self.opt["world_size"] * resume_state["iter"]
            set_random_seed(self.opt.get("manual_seed", 0) + own)

    def _structure(self) -> list[Any]:
        groups = [structure(optimizer.param_groups) for optimizer in self.optimizers]
        return groups + [structure(scheduler.state_dict()) for scheduler in self.schedulers]

    def save_best(self, current_iter: int) -> None:
        """Save G as ``net_g_best_<set>_<metric>.pth`` for every metric whose best iteration is ``current_iter``.

        Raises:
            UserError: The write failed; raised on every process.
        """
        on_rank_0(lambda: self._save_best(current_iter))

    def _save_best(self, current_iter: int) -> None:
        ema = getattr(self, "net_g_ema", None)
        nets, keys = ([self.net_g], ["params"]) if ema is None else ([self.net_g, ema], ["params", "params_ema"])
        for dataset, record in getattr(self, "best_metric_results", {}).items():
            for metric, figure in record.items():
                if figure["iter"] == current_iter:
                    self.save_network(nets, f"net_g_best_{dataset}", metric, keys)


def structure(value: Any) -> Any:
    """Return the structure of a value without its numbers; milestones may differ, and None counts as a flag."""
    if isinstance(value, Counter):
        return "milestones", all(isinstance(number, int) for pair in value.items() for number in pair)
    if isinstance(value, dict):
        return {name: structure(part) for name, part in value.items() if name != "params"}
    if isinstance(value, (list, tuple)):
        return {place: structure(part) for place, part in enumerate(value)} | {"length": len(value)}
    if value is None or isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def has_structure(expected: Any, found: Any) -> bool:
    """Whether ``found`` contains the structure ``expected``; other versions of torch may add entries."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return bool(expected == found)
    return all(name in found and has_structure(kind, found[name]) for name, kind in expected.items())


def has_consistent_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its state has the same entries for every weight, in the weight's shape or as one number."""
    kept = [(weight, optimizer.state.get(weight, {})) for group in optimizer.param_groups for weight in group["params"]]
    names = {frozenset(state) for _, state in kept if state}
    return len(names) <= 1 and all(
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape in (torch.Size(), weight.shape)
        for weight, state in kept
        for value in state.values()
    )


def to_python(values: Any) -> Any:
    """Convert NumPy's numbers in nested dictionaries to Python's."""
    if isinstance(values, dict):
        return {name: to_python(value) for name, value in values.items()}
    return values.item() if hasattr(values, "item") else values
