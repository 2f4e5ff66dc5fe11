"""Train and test the rows of a study; finished work is skipped, interrupted work is resumed."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import missing_folders
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.after_test import FOLDER
from dp_basicsr.evaluation.files import JSON_NAME, read_evaluation
from dp_basicsr.options import override, read_options
from dp_basicsr.studies.calibration import calibration_file
from dp_basicsr.studies.study import Study
from dp_basicsr.utils.arguments import ROOT
from dp_basicsr.utils.console import exit_on_signals

import yaml

_LAST_LINES = 5  # lines of a failed program's output in the message


@dataclass(frozen=True)
class StudyRun:
    """One training of a row and its test."""

    name: str  # experiments/<name>, results/<name>
    label: str  # of the row, as the base
    base: str
    # Of data order, augmentation and D's start. With seeds, the study judges the images itself, instead of test.py.
    seed: int | None
    train_file: Path
    test_file: Path
    train: tuple[str, ...]  # overrides
    test: tuple[str, ...]

    @property
    def model(self) -> Path:
        """The trained generator, which train.py writes last."""
        return Path("experiments", self.name, "models", "net_g_latest.pth")

    @property
    def evaluation(self) -> Path:
        """Folder of the test's tables."""
        return Path("results", self.name, FOLDER)

    @property
    def record(self) -> Path:
        """File with the options the run was started with; outside its folder, which train.py may move away."""
        return Path("experiments", f"{self.name}.study.yml")

    @property
    def log(self) -> Path:
        """Log file with the output of both programs."""
        return Path("experiments", f"{self.name}.study.log")

    def is_trained(self) -> bool:
        """Whether the training is complete."""
        return self.model.is_file()

    def is_tested(self) -> bool:
        """Whether the tables are newer than the model and include every available set."""
        path = self.evaluation / JSON_NAME
        # An older table is of a model that has been trained again since.
        if not path.is_file() or not self.is_trained() or path.stat().st_mtime < self.model.stat().st_mtime:
            return False
        sets = present_sets(read_options(self.test_file, self.test))
        return {entry["name"] for entry in sets} <= set(read_evaluation(self.evaluation).sets)

    def train_command(self) -> list[str]:
        """Command of the training, which resumes from the newest state if there is one."""
        # Also at the first start: without a state, --auto_resume begins a new run.
        return _command("train.py", self.train_file, ["--auto_resume"], [f"name={self.name}", *self.train])

    def test_command(self) -> list[str]:
        """Command of the test on all available sets."""
        model = f"path:pretrain_network_g={self.model}"
        return _command("test.py", self.test_file, [], [f"name={self.name}", model, *self.test])

    def check_record(self) -> None:
        """Raise a UserError if the run was started with other options, which must not mix with the study's rows."""
        if not self.record.is_file():
            if self.record.with_name(self.name).exists():
                raise UserError(f"experiments/{self.name} exists, but was not created by a study: rename it")
            return
        started = yaml.safe_load(self.record.read_text(encoding="utf-8"))
        # By what the overrides come to: their order says nothing.
        before, now = read_options(self.train_file), read_options(self.train_file, self.train)
        # Overrides of an older study may not even apply today.
        with contextlib.suppress(UserError):
            override(before, started["overrides"])
        if (started["options"], before) != (self.train_file.name, now):
            raise UserError(
                f"experiments/{self.name} was trained with other options than the study has now ({self.record}): "
                "move the folder and this file away to train it again"
            )


def study_runs(study: Study) -> list[StudyRun]:
    """Return the runs of all rows: all rows of a seed before the next, rows with seeds of their own last.

    A calibration that a row needs and that was not made yet is a UserError.
    """
    # Seeds outside, so that all rows are comparable after each round.
    rounds = [(row, seed) for seed in study.seeds or (None,) for row in study.rows if row.run and not row.seeds]
    rounds += [(row, seed) for row in study.rows for seed in row.seeds]
    runs, smoke = [], study.smoke
    for row, seed in rounds:
        name = study.prefix + (row.run if seed is None else f"{row.run}_seed{seed}")
        network = tuple(smoke.network[row.base]) if smoke else ()
        # The row's come last: one without a perceptual loss removes the section that the smoke run's reach into.
        train = [*study.overrides, *(smoke.train if smoke else ()), *network, *row.overrides]
        if row.calibrated:
            path = calibration_file(study)
            if not path.is_file():
                raise UserError(f"{path} is missing: run the study without --dry-run first, which calibrates it")
            for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["overrides"][row.calibrated]:
                key, value = entry.split("=", 1)
                train.append(f"{key}={float(value) * (row.times if key.endswith(':loss_weight') else 1):g}")
        train += [] if seed is None else [f"manual_seed={seed}"]
        # Entries of a list cannot be overridden individually.
        if smoke:
            train = [entry.replace("weights: imagenet", "weights: random") for entry in train]
        files = study.options(row.base, "train"), study.options(row.base, "test")
        test = (*(smoke.test if smoke else ()), *network)
        runs.append(StudyRun(name, row.label, row.base, seed, *files, tuple(train), test))
    return runs


def make_jobs(study: Study) -> list[StudyRun]:
    """Return what is to be trained: each run once, because rows may share a training."""
    return list({run.name: run for run in study_runs(study)}.values())


def present_sets(opt: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the test sets of an option file whose folders exist."""
    return [dataset for dataset in opt["datasets"].values() if not missing_folders(dataset)]


class Runner:
    """Run jobs, one at a time on each of ``gpus``, which CUDA_VISIBLE_DEVICES selects, or on the CPU (0)."""

    def __init__(self, gpus: int) -> None:
        # Its names may be UUIDs, and its order is the user's: children get its entries, not numbers.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(number) for number in range(gpus)]
        if len(devices) < gpus:
            raise UserError(f"--gpus {gpus}: CUDA_VISIBLE_DEVICES={visible} has only {len(devices)}")
        self.failed: dict[str, str] = {}  # job -> reason
        self._slots: queue.Queue[str] = queue.Queue()
        for device in devices[:gpus] or [""]:  # "" hides all GPUs
            self._slots.put(device)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # held from the look at `stopping` until a child can be terminated

    def run(self, jobs: Sequence[StudyRun], retest: bool) -> None:
        """Train and test what is missing. A failed job does not stop the others; Ctrl-C and signals stop all."""
        for job in jobs:
            job.check_record()
        pool = ThreadPoolExecutor(self._slots.qsize())
        # The default would kill this process and leave its trainings running.
        with exit_on_signals():
            try:
                list(pool.map(lambda job: self._run_one(job, retest), jobs))
            finally:
                with self._starting:
                    self._stopping.set()
                # Stop all trainings with the study: SIGTERM lets each save a checkpoint.
                for child in list(self._children):
                    child.terminate()
                pool.shutdown(cancel_futures=True)

    def _run_one(self, job: StudyRun, retest: bool) -> None:
        device = self._slots.get()
        try:
            if not job.is_trained():
                # Before the training, so that an interrupted one is known as the study's.
                job.record.parent.mkdir(parents=True, exist_ok=True)
                record = {"options": job.train_file.name, "overrides": list(job.train)}
                job.record.write_text(yaml.safe_dump(record), encoding="utf-8")
                self._call(job, "training", job.train_command(), device)
            if job.name not in self.failed and job.seed is None and (retest or not job.is_tested()):
                self._call(job, "testing", job.test_command(), device)
            if job.name not in self.failed and not self._stopping.is_set():
                print(f"{job.name}: done", flush=True)
        finally:
            self._slots.put(device)

    def _call(self, job: StudyRun, what: str, command: list[str], device: str) -> None:
        # Hides the other GPUs, which `num_gpu: auto` would take too.
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        # Appended to: training, resumed trainings and test share one file.
        with job.log.open("ab") as log:
            start = log.tell()
            with self._starting:
                if self._stopping.is_set():
                    return
                child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                self._children.add(child)
            print(f"{job.name}: {what} on {f'GPU {device}' if device else 'the CPU'}, output in {job.log}", flush=True)
            code = child.wait()
            self._children.discard(child)
        if code != 0 and not self._stopping.is_set():
            if code < 0:
                how = f"{signal.Signals(-code).name} ended it (out of memory?); the same command continues it"
                self.failed[job.name] = f"{what}: {how}, and {job.log} is its output"
            else:
                lines = job.log.read_bytes()[start:].decode(errors="replace").splitlines()
                # Another study at the same rows writes into the file, too.
                errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
                last = lines[errors[-1] :][:_LAST_LINES] if errors else lines[-_LAST_LINES:]
                self.failed[job.name] = f"{what} ended with code {code}: " + "\n  ".join(last)
            print(f"{job.name}: {self.failed[job.name]}", file=sys.stderr, flush=True)


def show_plan(jobs: Sequence[StudyRun], retest: bool) -> None:
    """Print the commands that are still to be run, as a user would type them."""
    for job in jobs:
        job.check_record()
        is_tested = job.seed is not None or (not retest and job.is_tested())
        steps = (("training", job.is_trained(), job.train_command()), ("test", is_tested, job.test_command()))
        print(f"# {job.name}: " + ", ".join(f"{what} {'is done' if done else 'to do'}" for what, done, _ in steps))
        for _, done, command in steps:
            if not done:
                print(shlex.join(["python", *command[1:]]))


def _command(program: str, options: Path, flags: Sequence[str], overrides: Sequence[str]) -> list[str]:
    paths = [os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
             for path in (ROOT / "dp_basicsr" / program, options)]  # fmt: skip
    # The flags first: `--force_yml` takes all words that follow it.
    return [sys.executable, paths[0], "-opt", paths[1], *flags, "--force_yml", *overrides]
