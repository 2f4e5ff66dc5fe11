"""Find and validate the checkpoint to start or resume from."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.manifest import SUFFIX, check_manifest, manifest_path, read_manifest
from dp_basicsr.checkpoint.weights import Part, read_weights
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import missing_hint
from dp_basicsr.utils.safe_load import load

import torch
from basicsr.utils import get_root_logger

MAX_COUNT = 2**31  # iterations, samples and seeds are below


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run resumes from."""

    path: Path  # its training state
    state: dict[str, Any]  # what was saved, on the CPU; its ``resumed_from`` is that of the states to come
    is_named: bool  # by ``path: resume_state``; otherwise it is the newest one of the run's folder

    def nothing_left(self, total_iter: int) -> str:
        """Return what to say if the run is complete, "" otherwise."""
        text = f"Nothing is left to train: iteration {self.state['iter']} of train: total_iter ({total_iter}) is saved"
        return f"{text} already; a larger total_iter continues it." if self.state["iter"] >= total_iter else ""

    def options(self, opt: dict[str, Any]) -> dict[str, Any]:
        """Return the options with the networks beside the state, and its seed.

        A network that is null in the options, or that was not saved (PSNRModel has no D), is not loaded.
        """
        manifest = manifest_path(self.path)
        saved = set(read_manifest(manifest)) if manifest.exists() else None
        path = opt["path"] | {f"pretrain_{key}": None for key in opt if key.startswith("network_") and opt[key] is None}
        # The folder may belong to another run or an archived one, and the state may have been renamed.
        for key, file in _networks(opt, self.path.with_stem(str(self.state["iter"]))).items():
            was_saved = _has(self.state, file) if saved is None else file in saved
            path[f"pretrain_{key}"] = str(file) if was_saved else None
        # Training continues from the trained weights, also where it once started from averaged ones (params_ema).
        path |= {key: "params" for key in path if key.startswith("param_key")}
        opt = opt | {"path": path}
        try:
            require_networks(opt)
        except UserError as error:
            raise UserError(f"{self.path} needs its networks in ../models, beside its folder: {error}") from error
        start = opt.get("network_g") or {}
        # A new run of this name moves the file away if it was the previous run's.
        if start.get("type") == "FromFile" and not Path(str(start.get("path"))).expanduser().is_file():
            opt["network_g"] = start | {"path": path["pretrain_network_g"]}
        # Crops depend on the seed, and a run without ``manual_seed`` has drawn one.
        seed = self.state.get("run", {}).get("manual_seed")
        if seed is not None and seed != opt["manual_seed"]:
            get_root_logger().info(f"manual_seed: {seed}, as in the state.")
            opt["manual_seed"] = seed
        return opt


def find_resume_point(opt: Mapping[str, Any]) -> ResumePoint | None:
    """Find the training state to resume from; None for a new run. Collective call.

    ``--auto_resume`` takes the newest intact checkpoint in the run's folder and logs why it skips newer ones. If
    ``path: resume_state`` names a state, too, the newest one is taken only if the run began with the named one: then
    this is the same command again. A missing or damaged state is a UserError, and so is a run all of whose checkpoints
    are damaged.
    """
    # Rank 0 decides: on a slow network file system the others may not yet see the newest files.
    path = on_rank_0(lambda: _choose(opt))
    if path is None:
        return None
    if opt.get("rank") and not path.exists():
        raise UserError(f"{path} is on the first machine alone: all must see the run's folder, shared or copied")
    state, is_named = read_state(path), path == _named(opt)
    if is_named:
        state["resumed_from"] = _origin(opt, path)
    return ResumePoint(path, state, is_named)


def _named(opt: Mapping[str, Any]) -> Path | None:
    """Return the state that the options name; of a link where it leads, because its networks are beside that folder."""
    name = opt["path"].get("resume_state")
    return Path(os.path.realpath(name) if os.path.islink(name) else os.path.abspath(name)) if name else None


def _origin(opt: Mapping[str, Any], named: Path) -> str:
    """Return a named state as those that follow note it: relative, because experiments are moved and renamed."""
    root = Path(opt["path"]["training_states"]).parent
    return Path(os.path.relpath(os.path.realpath(named), os.path.realpath(root))).as_posix()


def _choose(opt: Mapping[str, Any]) -> Path | None:
    """Choose between the newest state of the run and the one that the options name."""
    named, newest, logger = _named(opt), None, get_root_logger()
    if opt["auto_resume"]:
        try:
            newest = _newest_intact(opt)
        except UserError as error:
            if named is None:
                raise
            logger.warning(f"path: resume_state ({named}) is resumed: {error}")
        folder = Path(opt["path"]["training_states"])
        if newest is None and named is None and (hint := missing_hint(folder)):
            logger.warning(f"--auto_resume begins a new run: there is no {folder}{hint}")
        if newest is None and named is None and any(folder.parent.rglob("net_g_*.pth")):
            logger.warning(
                f"--auto_resume begins a new run: {folder.parent} has networks, but no state to resume from in "
                f"{folder.name}/; path:pretrain_network_g starts from a network alone"
            )
    if newest is not None and named is not None and newest != named:
        state = read_state(newest)
        if state.get("resumed_from") == _origin(opt, named):
            logger.info(f"This run began with path: resume_state ({named}): it resumes from its newest checkpoint.")
            return newest
        if "resumed_from" not in state:  # BasicSR's, or an older version's
            logger.warning(
                f"path: resume_state ({named}) is not used, because {newest} does not tell whether it comes from it; "
                "to resume from the named one, leave out --auto_resume"
            )
            return newest
        logger.warning(f"path: resume_state ({named}) is resumed, and not {newest}, which does not come from it.")
        newest = None
    if newest is None and named is not None and os.path.lexists(manifest_path(named)):
        try:
            check_manifest(manifest_path(named))
        except UserError as error:
            advice = "name another state, or use --auto_resume"
            raise UserError(f"path: resume_state ({named}): {error}; {advice}") from error
    elif newest is None and named is not None and not named.exists():
        # Before another process looks for it.
        hint = missing_hint(named, "state") or "; name another one with path:resume_state"
        raise UserError(f"training state {named} cannot be read (No such file or directory){hint}")
    return newest or named


def _newest_intact(opt: Mapping[str, Any]) -> Path | None:
    """Return the newest state in the run's folder whose checkpoint is intact; None if there are no checkpoints.

    One without a manifest, such as BasicSR's, is intact if its state and the networks of the options can be loaded.
    Checkpoints none of which is intact are a UserError.
    """
    folder, reasons = Path(opt["path"]["training_states"]), []
    files = [path for suffix in (".state", SUFFIX) for path in folder.glob(f"*{suffix}")]
    for number in sorted({int(path.stem) for path in files if path.stem.isdecimal()}, reverse=True):
        state = folder / f"{number}.state"
        manifest, networks = manifest_path(state), _networks(opt, state).values()
        try:
            if os.path.lexists(manifest):  # a broken link was a manifest, too
                checked = check_manifest(manifest)
                for network in networks:
                    # Models may lack a network of the options; one that was not saved (G always is) has no file either.
                    if network not in checked and (network.name.startswith("net_g_") or network.exists()):
                        raise UserError(f"{manifest.name} is damaged: it does not name {network.name}")
                return state
            # A renamed state would be resumed at its own iteration, with the networks of another one.
            content = read_state(state)
            if (iteration := content["iter"]) != number:
                raise UserError(f"{state} belongs to iteration {iteration}")
            for network in (path for path in networks if _has(content, path)):
                _require_network(network)
            return state
        except UserError as error:
            get_root_logger().warning(f"The checkpoint of iteration {number} is skipped: {error}")
            reasons.append(f"{number}: {textwrap.shorten(str(error), 200)}")
    if reasons:
        raise UserError(
            f"none of the checkpoints in {folder.parent} is intact ({'; '.join(reasons)}); name a state with "
            "path:resume_state, or start a new run without --auto_resume"
        )
    return None


def _has(state: Mapping[str, Any], network: Path) -> bool:
    """Return whether a state without a manifest is of a model with this network: one optimizer trains G alone."""
    optimizers = state.get("optimizers")
    return not network.name.startswith("net_d_") or not isinstance(optimizers, list) or len(optimizers) > 1


def _networks(opt: Mapping[str, Any], state: Path) -> dict[str, Path]:
    """Return the files, by BasicSR's names, of the options' networks (``network_g`` ...) that belong to a state."""
    ignored = opt["path"].get("ignore_resume_networks") or ()
    folder = state.parent.parent / "models"
    return {
        key: folder / f"net_{key.removeprefix('network_')}_{state.stem}.pth"
        for key in opt
        if key.startswith("network_") and key not in ignored and opt[key] is not None
    }


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state without running code from it; a UserError if it is missing, damaged, or no state."""
    advice = "name an earlier one with path:resume_state"
    # MultiStepRestartLR keeps its milestones in a Counter.
    state = load(path, "training state", advice, allowed=[Counter])
    if not isinstance(state, dict) or type(state.get("iter")) is not int or not 0 <= state["iter"] < MAX_COUNT:
        raise UserError(f"{path} is not a training state: expected a name like training_states/<iteration>.state")
    position, run = state.get("position", {}), state.get("run", {})
    is_right = isinstance(position, dict) and isinstance(run, dict)
    counts = [*position.values(), run.get("manual_seed") or 0] if is_right else []
    if not is_right or not all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
        raise UserError(f"{path} is damaged: position or run is not what a run writes; {advice}")
    return state


def require_networks(opt: Mapping[str, Any]) -> None:
    """Refuse networks of the options that are missing or cannot be read (UserError)."""
    for key, path in opt["path"].items():
        if key.startswith("pretrain_network") and path is not None:
            _require_network(Path(path), f"path: {key}:")


def _require_network(path: Path, what: str = "network") -> None:
    if not path.is_file():
        raise UserError(f"{what} {'a folder, and not its file' if path.is_dir() else 'no such file'}: {path}")
    part: Part = "discriminator" if "network_d" in what or path.name.startswith("net_d_") else "generator"
    try:
        read_weights(path, part=part)
    except UserError as error:
        raise UserError(f"{what} {error}") from error


def run_metadata(opt: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the results depend on bit for bit beside data, code and most options; and the seed."""
    train = opt.get("train") or {}
    return {
        "manual_seed": opt.get("manual_seed"),
        "processes": opt["world_size"],
        "threads": torch.get_num_threads(),
        "device": "cpu" if opt["num_gpu"] == 0 else torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "deterministic": opt.get("deterministic", False),
        "freeze": train.get("freeze") or [],
        "amp": train.get("amp", "none"),
        "compile": train.get("compile", False),
    }


def resume_warnings(opt: Mapping[str, Any], state: dict[str, Any], position: dict[str, int]) -> Iterator[str]:
    """Yield the reasons why resuming ``state`` is not bit-exact; ``position`` is that of this run's training stream."""
    if "run" not in state:
        yield "the state is another package's, BasicSR's or an older version's, without random states and best metrics"
        return
    now = run_metadata(opt)
    for name, before in state["run"].items():
        if now.get(name) != before and name != "manual_seed":
            what = ": each process draws new random numbers" if name == "processes" else ""
            yield f"{name}: {before} before, {now.get(name)} now{what}"
    for name in ("batch_size", "epoch_size"):
        before = state.get("position", {}).get(name)
        if before != position[name]:
            yield f"{name}: {before} before, {position[name]} now: other batches from the next sample on"
    if state.get("position", {}).get("names", position["names"]) != position["names"]:
        yield "datasets: train: files of other names than before: other batches from the next sample on"
    if (now["device"] != "cpu" or now["processes"] > 2) and not now["deterministic"]:
        yield "deterministic: false: GPUs, and three or more processes, add in a varying order"
