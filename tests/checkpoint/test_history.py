"""The contract of a run's signals and resume: any sequence of starts and stops leaves one history and loses no work.

A state machine draws starts (new, --auto_resume, from any state there is, or both) and ends (by itself, by each signal,
killed in a step or at any moment of a save, a full disk). The reference is a list of marks: each network says which
steps made it.
``FUZZ_SECONDS=600`` draws for that long; the seed of a failure is printed.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.history import restore_best, set_aside_later
from dp_basicsr.checkpoint.manifest import check_manifest
from dp_basicsr.errors import EXIT_RETRY

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.checkpoint.traced_run import result_of, train_traced
from tests.support.options import SMALL_PSNR, write_small
from tests.support.processes import CONTEXT

SEQUENCES, STARTS = 2, 6
TOTAL, SAVE, VALIDATE = 12, 3, 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
FULL = 8000  # bytes that a file may have on the full disk: more than a network's, fewer than a state's

SET = "{name: set, type: PairedImageDataset, dataroot_gt: GT, dataroot_lq: LQ, io_backend: {type: disk}}"
ENTRIES = [
    "manual_seed=3", "datasets:train:dataroot_gt=GT", "datasets:train:dataroot_lq=LQ", "datasets:train:gt_size=16",
    "datasets:train:dataset_enlarge_ratio=5", f"datasets:val={SET}", "network_g={type: TracedNet}",
    f"train:total_iter={TOTAL}",
    f"val={{val_freq: {VALIDATE}, save_img: false, metrics: {{gray: {{type: gray_of_result}}}}}}",
    f"logger:save_checkpoint_freq={SAVE}", "logger:use_tb_logger=true", "logger:keep_best=true",
]  # fmt: skip

Trace = tuple[int, ...]


def trace_of(network: Path) -> Trace:
    params = torch.load(network, weights_only=True)["params"]
    return tuple(params["trace"][: params["count"]].tolist())


@dataclass
class World:
    """What should be there: the reference.

    Attributes:
        history: The marks of the run's steps, as far as it has got.
        saved: The iterations of its checkpoints in its folder -> the named state that each one's history began with.
        curve_from: The first step of TensorBoard's curve, less one.
        base: Where it went back to an earlier state; the best network from before may be lost.
    """

    folder: Path
    history: Trace = ()
    saved: dict[int, Path | None] = field(default_factory=dict)
    curve_from: int = 0
    base: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "experiments/small"

    def checkpoints(self) -> dict[Path, Trace]:
        """All checkpoints anywhere in the folder, by their states; each is intact, unless it is being moved.

        One whose manifest alone is missing (killed just before) is a checkpoint as BasicSR's are.
        """
        found = {}
        for state in self.folder.rglob("*.state"):
            network = state.parent.parent / f"models/net_g_{state.stem}.pth"
            if (self.run / "goes_back_to").exists() and not network.exists():
                continue
            if state.with_suffix(".sha256").exists():
                check_manifest(state.with_suffix(".sha256"))
            found[state] = trace_of(network)
        return found

    def state(self, iteration: int) -> Path:
        return self.run / f"training_states/{iteration}.state"

    def begin(self, auto: bool, named: Path | None, traces: dict[Path, Trace]) -> None:
        """Go to where a start must begin."""
        self.before = dict(vars(self)) | {"saved": dict(self.saved)}
        newest = max(self.saved, default=None) if auto else None
        if newest is not None and named not in (None, self.state(newest), self.saved[newest]):
            newest = None  # the named state is another: it wins
        if newest is not None:
            # What was validated after the checkpoint may have replaced its best network, and now the mark is another.
            self.base = newest if len(self.history) > newest else self.base
            self.history = self.history[:newest]
            if named == self.state(newest):
                self.saved[newest] = named
            return
        of_the_run = named is not None and named.parent.parent == self.run
        self.history = traces[named] if named else ()
        self.base = len(self.history)
        kept = {iteration: origin for iteration, origin in self.saved.items() if iteration <= len(self.history)}
        self.saved = kept if of_the_run else {}
        if of_the_run:
            self.saved[len(self.history)] = named
        else:
            self.curve_from = len(self.history)
        self.origin = named

    def end(self, mark: int, last: int, code: int) -> None:
        """Check what a start has left: ``last`` is its last complete step."""
        begun = len(self.history)
        origin = self.saved.get(begun, self.origin if begun else None)
        self.history += (mark,) * max(0, last - begun)
        there = {int(path.stem): trace for path, trace in self.checkpoints().items() if path.parent.parent == self.run}
        if code == -signal.SIGKILL and last == begun:
            if (self.run / "goes_back_to").exists():  # the next start completes it
                there = {iteration: trace for iteration, trace in there.items() if iteration <= begun}
            elif set(there) - set(self.saved):
                vars(self).update(self.before)  # killed before it went back or was archived
                return
        for iteration, trace in there.items():
            assert trace == self.history[:iteration], f"{iteration} is of another history"
        due = {number for number in range(begun + 1, last + 1) if number % SAVE == 0}
        if code == EXIT_RETRY:
            due.add(last)
        allowed = set(self.saved) | due
        assert set(there) <= allowed, f"{sorted(there)}, expected at most {sorted(allowed)}"
        sure = allowed if code in (0, EXIT_RETRY) else allowed - {last}  # a save may have been in the middle
        assert sure <= set(there), f"{sorted(there)}, expected at least {sorted(sure)}"
        self.saved = {iteration: self.saved.get(iteration, origin) for iteration in there}
        if code in (0, EXIT_RETRY):
            self.check_best(last if code == EXIT_RETRY else last + 1)
            self.check_curves(last)

    def check_best(self, before: int) -> None:
        """The best network is of this history, and no later one is better; without going back it is the best of all."""
        validated = range(VALIDATE, before, VALIDATE)
        grays = {number: round(255 * result_of(self.history[:number])) for number in validated}
        path = self.run / "models/net_g_best_set_gray.pth"
        if not path.exists():
            assert not [number for number in validated if number >= self.base], "there is no best network"
            return
        best = trace_of(path)
        assert best == self.history[: len(best)], "the best network is of another history"
        assert len(best) in validated
        assert all(grays[number] <= grays[len(best)] for number in validated if number > len(best) or not self.base)

    def check_curves(self, last: int) -> None:
        events = EventAccumulator(str(self.folder / "tb_logger/small"))
        events.Reload()
        if last == self.curve_from:
            return
        curve = [(event.step, event.value) for event in events.Scalars("losses/l_pix")]
        assert [step for step, _ in curve] == list(range(self.curve_from + 1, last + 1))
        for step, value in curve:
            assert value == pytest.approx(result_of(self.history[:step]), rel=1e-5), (
                f"step {step} is of another history"
            )


def start(folder: Path, mark: int, auto: bool, named: Path | None, order: dict[str, Any]) -> int:
    entries = [f"network_g:mark={mark}", *([f"path:resume_state={named}"] if named else [])]
    argv = ["-opt", "small.yml", *(["--auto_resume"] if auto else []), "--force_yml", *entries]
    process = CONTEXT.Process(target=train_traced, args=({"folder": str(folder), "argv": argv, **order},))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def draw_end(draw: random.Random, left: int) -> tuple[dict[str, Any], int]:
    """An order for the process, and its exit code."""
    step = draw.randint(1, max(1, left))
    how = draw.choice(["end", "signal", "signal", "kill", "disk", "full"])
    if how == "end" or not left:
        return {}, 0
    if how == "signal":
        return {"at": ["step", step], "signals": [draw.choice(SIGNALS)]}, EXIT_RETRY
    if how == "kill":
        return {"at": ["step", step], "signals": [signal.SIGKILL]}, -signal.SIGKILL
    if how == "disk":
        return {"at": ["disk", draw.randint(1, 30)], "signals": [signal.SIGKILL]}, -signal.SIGKILL
    return {"limit": FULL}, 2


def play(seed: int, folder: Path) -> None:
    for name, side in (("GT", 16), ("LQ", 4)):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "black.png"), np.zeros((side, side, 3), np.uint8))
    write_small(*ENTRIES, base=SMALL_PSNR, file=folder / "small.yml")
    draw, world = random.Random(seed), World(folder)
    story: list[str] = []
    ever: set[Trace] = set()
    for mark in range(1, STARTS + 1):
        before = world.checkpoints()
        moving = (world.run / "goes_back_to").exists()  # these are about to be moved, and would be refused by name
        states = [state for state in sorted(before) if not (moving and state.parent.parent == world.run)]
        named = draw.choice([None, *states]) if draw.random() < 0.6 else None
        auto = draw.random() < 0.6
        world.begin(auto, named, before)
        begun = len(world.history)
        order, expected = draw_end(draw, TOTAL - begun)
        story.append(f"auto {auto}, named {named and named.relative_to(folder)}, from {begun}, {order}")
        (folder / "output").unlink(missing_ok=True)
        code = start(folder, mark, auto, named, order)
        said = (folder / "output").read_text()
        last = max([begun, *map(int, re.findall(r"iter: +(\d+), lr", said))])
        text = f"seed {seed}:\n" + "\n".join(story) + f"\n-> {code}\n{said[-1500:]}"
        assert code in (expected, 0) if order.get("at", [""])[0] == "disk" else code == expected, text
        try:
            world.end(mark, last, code)  # also that each is intact
            now = set(world.checkpoints().values())
            moving = (world.run / "goes_back_to").exists()  # then one may have its files in two folders
            assert moving or ever <= now, f"lost: {ever - now}"
            ever |= now
        except AssertionError as error:
            raise AssertionError(f"{error}\n{text}") from error


def test_any_sequence_of_starts_and_stops_has_one_history(tmp_path: Path) -> None:
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0"))
    seeds = iter(range(int(os.environ.get("FUZZ_SEED", "0")), 10**9))
    for number in seeds:
        play(number, tmp_path / str(number))
        if number >= SEQUENCES - 1 and time.monotonic() > end:
            break


def test_images_of_abandoned_validations_are_set_aside(tmp_path: Path) -> None:
    """tensorboard#3732 (sibling): those of iteration 30 stayed in a run that went back to 10 and ended at 15."""
    images = [f"visualization/a_30/{name}.png" for name in ("a_30_10", "a_30_20", "mine")]
    for name in (*images, *(f"models/net_g_{end}.pth" for end in (10, 20)), "training_states/20.state"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    set_aside_later(tmp_path, tmp_path / "training_states/10.state", 10, {})
    assert {path.name for path in tmp_path.glob("visualization/*/*")} == {"a_30_10.png", "mine.png"}
    assert [path.name for path in tmp_path.glob("abandoned_*/visualization/a_30/*")] == ["a_30_20.png"]


def test_a_best_network_takes_the_place_of_a_link_not_of_its_target(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for iteration in (4, 8):
        (models / f"net_g_{iteration}.pth").write_bytes(str(iteration).encode())
    link = models / "net_g_best_set_psnr.pth"
    link.symlink_to("net_g_8.pth")
    checksums = {link.name: hashlib.sha256(b"4").hexdigest()}
    assert restore_best(tmp_path, tmp_path / "training_states/4.state", {"set": {"psnr": {"iter": 4}}}, checksums) == []
    assert [path.read_bytes() for path in sorted(models.iterdir())] == [b"4", b"8", b"4"]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("figures", [{"psnr": {"iter": 2}}, {"psnr": {"iter": -1}}, {}])
def test_a_later_best_network_is_set_aside_where_the_state_s_own_is_back_and_where_there_is_none(
    figures: dict[str, Any], kept: bool, tmp_path: Path
) -> None:
    """Killed after a validation between two saves: if the resumed run is not exact, it may not find it again."""
    (models := tmp_path / "models").mkdir()
    best = models / "net_g_best_set_psnr.pth"
    best.write_bytes(b"8")
    for iteration in (2, 4) if kept else (4,):
        (models / f"net_g_{iteration}.pth").write_bytes(str(iteration).encode())
    has_best = figures.get("psnr", {}).get("iter") == 2
    checksums = {best.name: hashlib.sha256(b"2").hexdigest()} if has_best else {}
    restore = partial(restore_best, tmp_path, tmp_path / "training_states/4.state", {"set": figures}, checksums)
    assert restore() == ([("set", "psnr")] if has_best and not kept else [])
    assert best.exists() == (has_best and kept)
    assert [path.read_bytes() for path in tmp_path.glob(f"abandoned_*/models/{best.name}")] == [b"8"]
    # Of the state's own iteration, whose validation is repeated, the checkpoint is enough.
    best.write_bytes(b"4")
    restore()
    assert best.exists() == (has_best and kept)
    assert len([*tmp_path.glob("abandoned_*")]) == 1
