"""Save a run's networks and everything else that resuming needs, and restore it bit-exactly."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dp_basicsr.checkpoint.manifest import delete_older, write_manifest
from dp_basicsr.checkpoint.resume import run_metadata
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import write_checkpoint
from dp_basicsr.utils.optimizers import averaged_weights, make_optimizer, weights_of
from dp_basicsr.utils.random_state import gather_random_states, set_random_state

import torch
from basicsr.utils import set_random_seed
from torch import nn

# Label of a file (``net_g``) -> the networks in it by key (``params``, ``params_ema``).
Networks = Mapping[str, Mapping[str, nn.Module]]


class Stateful(Protocol):
    """What has a state: optimizers, schedulers, scaler, the best results."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(eq=False)
class Saver:
    """Saves complete checkpoints or stops the run, and restores them.

    Checkpoints are made only between steps, when no gradient is being accumulated, so no gradients are saved.
    """

    opt: Mapping[str, Any]  # of the run, as BasicSR's models have them
    networks: Networks
    optimizers: Sequence[torch.optim.Optimizer]  # in the order of the state's file, as are the schedulers
    schedulers: Sequence[Stateful]
    others: dict[str, Stateful]  # with a state, by key in the file; files without a key leave them unchanged

    saved: int | None = None  # the last iteration with a checkpoint
    best_files: dict[str, str] = field(default_factory=dict)  # name of a best network -> SHA-256
    resumed_from: str | None = None  # the state that the options named when this history began

    def save(self, epoch: int, iteration: int, position: Mapping[str, int] | None = None) -> None:
        """Save networks and state in BasicSR's files, then the manifest that makes them a checkpoint.

        Collective call. An iteration that is already saved is not saved again; -1 saves the networks as ``latest``,
        without a state. With ``logger: keep_last``, older checkpoints are deleted once this one is on the disk. If the
        write fails, every process raises a UserError, and earlier checkpoints are intact.
        """
        if iteration == self.saved:
            return
        # Everything that a resumed run needs, in BasicSR's format, readable with ``weights_only``.
        content = {
            "epoch": epoch,
            "iter": iteration,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "position": dict(position or {}),
            # Of all processes, so not within on_rank_0.
            "random": gather_random_states(),
            "run": run_metadata(self.opt),
            **{key: part.state_dict() for key, part in self.others.items()},
            "best_files": dict(self.best_files),
            "resumed_from": self.resumed_from,
        }
        name = "latest" if iteration == -1 else str(iteration)
        with averaged_weights(self.optimizers):
            checksums = dict(on_rank_0(lambda: [self._write_network(label, name) for label in self.networks]))
        if iteration == -1:
            return
        state = Path(self.opt["path"]["training_states"], f"{iteration}.state")
        # The manifest comes last: until it is there, this is no checkpoint. Older ones are deleted only then.
        checksums[state] = on_rank_0(lambda: write_checkpoint(content, state))
        on_rank_0(lambda: write_manifest(state, checksums))
        if keep := self.opt["logger"].get("keep_last"):
            on_rank_0(lambda: delete_older(state, Path(self.opt["path"]["models"]), keep))
        self.saved = iteration

    def _write_network(self, label: str, name: str, of: str = "") -> tuple[Path, str]:
        """Write ``<label><of>_<name>.pth`` in BasicSR's format, ``{key: state_dict}``; return it and its checksum.

        Beside G's stand its options, as in an export (JSON): some networks have numbers that are in no tensor.
        """
        nets = self.networks[label]
        content: dict[str, Any] = {
            key: {part: value.cpu() for part, value in net.state_dict().items()} for key, net in nets.items()
        }
        # Of a network from a file they are those of the file, if it has any.
        network = getattr(nets["params"], "dp_options", self.opt["network_g"])
        if label == "net_g" and network["type"] != "FromFile":
            content["options"] = json.dumps({"scale": self.opt["scale"], "network_g": network}, default=str)
        path = Path(self.opt["path"]["models"], f"{label}{of}_{name}.pth")
        return path, write_checkpoint(content, path)

    def save_best(self, iteration: int, best: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Save G as ``net_g_best_<set>_<metric>.pth`` for every metric whose best iteration is ``iteration``."""
        new = [(dataset, metric) for dataset in best for metric in best[dataset]
               if best[dataset][metric]["iter"] == iteration]  # fmt: skip
        with averaged_weights(self.optimizers):
            files = on_rank_0(lambda: [self._write_network("net_g", metric, f"_best_{name}") for name, metric in new])
        self.best_files |= {path.name: checksum for path, checksum in files}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that this class or BasicSR saved. The networks have been loaded with the model.

        With another number of processes than in the state, each process draws new random numbers. Optimizers or
        schedulers of another model are a UserError; other damage may raise any error.
        """
        same = True
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            groups = structure(optimizer.param_groups)
            for group in saved["param_groups"] if "fused" in optimizer.defaults else ():
                # Fused or not is this run's choice; BasicSR's Adam is not.
                group["fused"] = optimizer.defaults["fused"]
            # torch loads a state of another kind of optimizer without a word, and fails in the first step.
            optimizer.load_state_dict(saved)
            # Optimizers add counters to their groups, so these may have more.
            same = same and has_structure(groups, structure(optimizer.param_groups)) and has_consistent_state(optimizer)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            expected = structure(scheduler.state_dict())
            scheduler.load_state_dict(saved)
            # They keep whatever a state has beside their own entries.
            same = same and structure(scheduler.state_dict()) == expected
        if not same:
            raise UserError("its optimizers or schedulers belong to another model")
        for key, part in self.others.items():
            if saved := state.get(key):
                # BasicSR's states lack them.
                part.load_state_dict(saved)
        self.saved, self.resumed_from = state["iter"], state.get("resumed_from")
        self.best_files = dict(state.get("best_files", {}))
        if not all(isinstance(text, str) for text in (self.resumed_from or "", *self.best_files.values())):
            raise UserError("its resumed_from or best_files is not text")
        states = state.get("random", [])
        rank, processes = self.opt["rank"], self.opt["world_size"]
        if len(states) == processes:
            set_random_state(states[rank])
        else:
            # With the iteration, so that the numbers of the run's start do not come again.
            set_random_seed(self.opt.get("manual_seed", 0) + rank + processes * state["iter"])


def structure(value: Any) -> Any:
    """Return the structure of a value without its numbers; milestones may differ, and None counts as a flag."""
    if isinstance(value, Counter):
        return "milestones", all(isinstance(number, int) for pair in value.items() for number in pair)
    if isinstance(value, dict):
        return {name: structure(part) for name, part in value.items() if name != "params"}
    if isinstance(value, (list, tuple)):
        return {index: structure(part) for index, part in enumerate(value)} | {"length": len(value)}
    if value is None or isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def has_structure(expected: Any, actual: Any) -> bool:
    """Whether ``actual`` contains the structure ``expected``; other versions of torch may add entries."""
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        return bool(expected == actual)
    return all(name in actual and has_structure(kind, actual[name]) for name, kind in expected.items())


def has_consistent_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state of each weight has what a first step of the same kind gives it, in the same shapes."""
    kind = type(optimizer)
    settings = {name: value for name, value in optimizer.defaults.items() if name in inspect.signature(kind).parameters}
    for weight in weights_of(optimizer):
        # Weights without a gradient have no state: D's, where only G is trained.
        if not (state := optimizer.state.get(weight)):
            continue
        twin = nn.Parameter(torch.ones_like(weight))
        twin.grad = torch.ones_like(weight)
        with torch.random.fork_rng(devices=[]):
            fresh = make_optimizer(kind, [twin], settings)
            fresh.step()
        for name, value in fresh.state.get(twin, {}).items():
            if name not in state or getattr(state[name], "shape", None) != getattr(value, "shape", None):
                return False
    return True
