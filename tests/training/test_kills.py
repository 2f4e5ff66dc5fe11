"""A run that is killed anywhere, any number of times, is bit-identical to an uninterrupted one."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.manifest import check_manifest
from dp_basicsr.errors import EXIT_RETRY
from dp_basicsr.utils.file_lock import run_lock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.support.images import write_pairs
from tests.support.options import write_small
from tests.support.processes import CONTEXT, TORCHRUN, free_port, rank_variables, run_program, wait_until
from tests.support.programs import difference
from tests.training.hit_run import train_and_be_hit

ROOT = Path(__file__).resolve().parents[2]

TOTAL = 24

# A generator that draws from every random state, spectral norm, EMA, two optimizers, warm-up, validation.
ENTRIES = [
    "manual_seed=3", "datasets:val_1:name=held_out", "datasets:train:num_worker_per_gpu=0",
    "datasets:train:batch_size_per_gpu=~", "datasets:train:batch_size_total=2",
    "datasets:train:dataset_enlarge_ratio=2.5", "network_g:type=NoisyRRDBNet", "network_g:num_feat=4",
    "train:scheduler:milestones=[5, 11]", "train:warmup_iter=3", f"train:total_iter={TOTAL}", "train:gan_opt:ramp=9",
    "train:balance={shares: {pix: 0.1, vgg: 0.4, resnet: 0.4, gan: 0.1}, ema: 0.9}",
    "val={val_freq: 4, save_img: false, metrics: {psnr: {type: counted_psnr, crop_border: 4}}}",
    "logger:keep_last=2", "logger:keep_best=true",
]  # fmt: skip

# A save of this run: G, D, state and manifest are each synced, renamed, and their folder synced; then the four files
# of an old checkpoint are deleted.
EVENTS_OF_A_SAVE = 4 * 3 + 4


def start(folder: Path, *overrides: str, processes: int = 0, **order: Any) -> list[int | None]:
    """Train in processes of their own; what hits them, see hit_run.py, hits rank 0, or ``rank``.

    Returns:
        Their exit codes; negative: the signal that killed it.
    """
    order["folder"] = str(folder)
    order["argv"] = ["-opt", "small.yml", "--auto_resume", *(("--force_yml", *overrides) if overrides else ())]
    port, children = free_port(), []
    for rank in range(processes or 1):
        own = order if order.get("rank", 0) == rank else {**order, "at": None}
        variables = rank_variables(rank, processes, port) if processes else {}
        children.append(CONTEXT.Process(target=train_and_be_hit, args=(own, variables)))
        children[-1].start()
    if "kill_after" in order:
        time.sleep(order["kill_after"])
        for child in children:
            child.kill()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def prepare(folder: Path) -> Path:
    """A folder with options and data (three pairs: 7 samples an epoch and a half of mini-batches left over)."""
    write_pairs(folder / "pairs", *[(72, 64)] * 3)
    write_small(*ENTRIES, file=folder / "small.yml")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    assert start(folder) == [0], (folder / "output").read_text()
    return folder


def scalars(folder: Path) -> dict[tuple[str, int], set[bytes]]:
    """All figures that the run has sent to TensorBoard, except its speed, as bits of float32."""
    found: dict[tuple[str, int], set[bytes]] = {}
    for path in (folder / "tb_logger/small").iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in (one for one in event.summary.value if one.tag != "img_per_s"):
                bits = np.float32(value.tensor.float_val[0]).tobytes()
                found.setdefault((value.tag, event.step), set()).add(bits)
    return found


def load(path: Path) -> Any:
    from collections import Counter

    with torch.serialization.safe_globals([Counter]):
        return torch.load(path, weights_only=True)


def assert_same_files(folder: Path, undisturbed: Path, files: list[str]) -> None:
    for file in files:
        one, other = (load(run / "experiments/small" / file) for run in (folder, undisturbed))
        assert difference(one, other, file) is None


def assert_same(folder: Path, undisturbed: Path, total: int = TOTAL) -> None:
    """G, D, EMA, optimizers, schedulers, random states, best metrics and all logged figures are bit-identical."""
    files = [f"training_states/{total}.state", "models/net_g_best_held_out_psnr.pth"]
    files += [f"models/net_{net}_{name}.pth" for net in "gd" for name in (total, "latest")]
    assert_same_files(folder, undisturbed, files)
    figures, expected = scalars(folder), scalars(undisturbed)
    assert figures == expected
    assert all(len(values) == 1 for values in figures.values())
    assert {step for tag, step in figures if tag == "losses/l_g_percep"} == set(range(1, total + 1))
    assert {step for tag, step in figures if tag == "metrics/held_out/psnr"} == set(range(4, total + 1, 4))
    names = {path.name for path in (folder / "experiments/small").rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith(".partial")]


def test_killed_at_every_moment_of_a_save(folder: Path, undisturbed: Path) -> None:
    """Seventeen kills, before and after every sync, rename and deletion, with and without a data worker."""
    assert start(folder, at=["disk", 12 + 5], signals=[signal.SIGKILL]) == [-signal.SIGKILL]
    for moment in range(1, EVENTS_OF_A_SAVE + 1):
        workers = f"datasets:train:num_worker_per_gpu={moment % 2}"
        codes = start(folder, workers, at=["disk", moment], signals=[signal.SIGKILL])
        assert codes == [-signal.SIGKILL], f"{moment}: {(folder / 'output').read_text()[-2000:]}"
    assert start(folder) == [0], (folder / "output").read_text()
    assert_same(folder, undisturbed)
    assert len(list((folder / "experiments/small/training_states").glob("*.state"))) == 2  # keep_last
    assert "archived" not in " ".join(os.listdir(folder / "experiments"))


def test_killed_during_validation_and_in_a_step(folder: Path, undisturbed: Path) -> None:
    """Seven kills. An interrupted validation is repeated: same figures, same best iteration.

    The validation of 12, which has its own checkpoint, is hit twice, the second time right after resuming.
    """
    for at in (["step", 4], ["metric", 1], ["metric", 2], ["metric", 5], ["step", 3], ["metric", 5], ["metric", 2]):
        assert start(folder, at=at, signals=[signal.SIGKILL]) == [-signal.SIGKILL]
    assert start(folder) == [0], (folder / "output").read_text()
    assert_same(folder, undisturbed)


def test_killed_at_random_times(folder: Path, undisturbed: Path) -> None:
    """At any time: at the start, and within a tenth of a second after a step."""
    times = random.Random(0)
    for _ in range(4):
        start(folder, kill_after=times.uniform(0, 0.4))
        codes = start(folder, at=["step", times.randint(2, 6)], after=times.uniform(0.001, 0.1))
        assert codes in ([-signal.SIGALRM], [0])
    assert start(folder) == [0], (folder / "output").read_text()
    assert_same(folder, undisturbed)


def test_signals_finish_the_step_and_save(folder: Path, undisturbed: Path) -> None:
    """In training, and in validation, which the resumed run repeats."""
    signals = ((signal.SIGTERM, "step", 5, 5), (signal.SIGINT, "metric", 2, 8), (signal.SIGHUP, "step", 3, 11))
    for number, event, place, last in signals:
        assert start(folder, at=[event, place], signals=[number]) == [EXIT_RETRY]
        assert whole_checkpoints(folder)[-1] == last
        message = f"{number.name}: stopped after iteration {last}; iteration {last} is saved"
        assert message in (folder / "output").read_text()
    assert start(folder) == [0], (folder / "output").read_text()
    assert_same(folder, undisturbed)


def test_a_signal_to_the_process_group_keeps_the_loader_workers(folder: Path) -> None:
    """As from a terminal, systemd and torchrun: the current step still gets its samples."""
    workers = "datasets:train:num_worker_per_gpu=2"
    assert start(folder, workers, at=["step", 5], signals=[signal.SIGTERM], group=True) == [EXIT_RETRY]
    assert (folder / "experiments/small/training_states/5.sha256").exists()


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    assert start(folder, at=["step", 5], signals=[signal.SIGTERM, signal.SIGINT]) == [-signal.SIGINT]
    assert not (folder / "experiments/small/training_states/5.state").exists()


def test_a_second_run_of_the_same_name_is_refused(folder: Path, undisturbed: Path) -> None:
    """With or without --auto_resume; the first run continues undisturbed."""
    assert start(folder, at=["step", 5], rival=True) == [0]
    assert (folder / "rival").read_text() == "2"
    assert re.search(r"error: .*experiments/small is in use by process \d+ on ", (folder / "output").read_text())
    assert_same(folder, undisturbed)
    assert sorted(os.listdir(folder / "experiments")) == ["small"]


def test_a_state_of_another_model_is_one_message(folder: Path) -> None:
    assert start(folder, at=["step", 4], signals=[signal.SIGTERM]) == [EXIT_RETRY]
    assert start(
        folder, "model_type=PSNRModel", "train:perceptual_opt=null", "train:balance=null", "train:gan_opt=null"
    ) == [2]
    error = (folder / "output").read_text().splitlines()[-1]
    assert error.startswith("error: the state of iteration 4 has 2 optimizer(s), PSNRModel has 1")
    assert re.search(r"with path:pretrain_network_g=\S*/net_g_4.pth$", error)


def test_every_process_reports_that_the_name_is_in_use(folder: Path) -> None:
    with run_lock(str(folder / "experiments/small")):
        assert start(folder, processes=2) == [2, 2]
    assert not (folder / "experiments").exists()


def test_processes_stop_together(folder: Path, tmp_path: Path) -> None:
    """A signal to one of three: all stop after the same iteration, and resume bit-exactly."""
    processes = 3
    settings = "datasets:train:batch_size_total=3", "deterministic=true", "train:total_iter=12"
    whole = prepare(tmp_path / "whole")
    assert start(whole, *settings, processes=processes) == [0] * processes, (whole / "output").read_text()
    for rank, at in ((1, ["step", 5]), (0, ["metric", 2])):  # in training, and in validation
        codes = start(folder, *settings, processes=processes, rank=rank, at=at, signals=[signal.SIGTERM])
        assert codes == [EXIT_RETRY] * processes, (folder / "output").read_text()
    assert start(folder, *settings, processes=processes) == [0] * processes, (folder / "output").read_text()
    assert "not bit-exact" not in (folder / "output").read_text()
    assert_same(folder, whole, total=12)


def test_another_number_of_processes_continues_with_the_next_sample(folder: Path) -> None:
    assert start(folder, processes=2, at=["step", 5], signals=[signal.SIGTERM]) == [EXIT_RETRY, EXIT_RETRY]
    assert start(folder, "train:total_iter=12") == [0], (folder / "output").read_text()
    output = (folder / "output").read_text()
    assert "Resume is not bit-exact: processes: 2 before, 1 now" in output
    assert "batch_size:" not in output.split("not bit-exact")[1]
    assert {step for tag, step in scalars(folder) if tag == "losses/l_g_pix"} == set(range(1, 13))


def whole_checkpoints(folder: Path) -> list[int]:
    """The iterations with intact checkpoints; there may be no other files."""
    states = folder / "experiments/small/training_states"
    assert list((folder / "experiments").rglob("*.partial")) == []
    manifests = sorted(states.glob("*.sha256"), key=lambda path: int(path.stem))
    for manifest in manifests:
        check_manifest(manifest)
    return [int(path.stem) for path in manifests]


def test_a_full_disk_stops_with_the_last_checkpoint_intact(
    folder: Path, undisturbed: Path, request: pytest.FixtureRequest
) -> None:
    """On a file system of 1.2 MB; with more space the run resumes bit-exactly."""
    mount = shutil.which("mount")
    disk = folder / "experiments"
    disk.mkdir()
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here: not root")
    request.addfinalizer(lambda: subprocess.run(["umount", disk], check=False))
    keep_all = "logger:keep_last=100"
    assert start(folder, keep_all) == [2]
    error = (folder / "output").read_text().splitlines()[-1]
    assert re.match(
        r"error: .*experiments/small/\S+ cannot be saved \(.*free on its disk\); earlier checkpoints are intact", error
    )
    assert whole_checkpoints(folder)
    assert "Traceback" not in (folder / "output").read_text()
    subprocess.run([mount, "-o", "remount,size=64m", disk], check=True)
    assert start(folder) == [0], (folder / "output").read_text()
    assert_same(folder, undisturbed)


def test_a_folder_that_cannot_be_written_stops_with_one_message(folder: Path) -> None:
    """A file in place of the folder; a read-only folder would not stop root."""
    (folder / "experiments").touch()
    assert start(folder) == [2]
    assert (folder / "output").read_text().startswith("error: cannot write ")
    (folder / "experiments").unlink()
    assert start(folder, at=["step", 5], signals=[signal.SIGKILL]) == [-signal.SIGKILL]
    models = folder / "experiments/small/models"
    models.rename(folder / "moved")
    models.touch()
    assert start(folder) == [2]
    assert (folder / "output").read_text().splitlines()[-1].startswith("error: none of the checkpoints")


def test_torchrun_saves_when_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    """SIGTERM to a worker, SIGHUP to torchrun: an intact checkpoint each time, bit-identical to an undisturbed run.

    torchrun itself then exits with code 1, because its workers did not finish.
    """
    # What counts events is not registered there. A signal during validation is saved after it, and so knows a best.
    plain = "network_g:type=RRDBNetDP", "val=~"
    command = [
        *TORCHRUN, "--standalone", "--nproc-per-node=2",
        str(ROOT / "dp_basicsr/train.py"), "-opt", "small.yml", "--auto_resume",
        "--force_yml", *plain, "train:total_iter=1000000",
    ]  # fmt: skip
    for to_a_worker in (True, False):
        output = folder / f"output_{to_a_worker}"
        torchrun = CONTEXT.Process(target=run_program, args=(command, str(folder), str(output), {}))
        torchrun.start()
        wait_until(lambda path=output: path.exists() and path.read_text().count("l_g_pix: ") >= 4, torchrun.is_alive)
        workers = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        number = signal.SIGTERM if to_a_worker else signal.SIGHUP
        os.kill(int(workers[1]) if to_a_worker else torchrun.pid, number)
        torchrun.join(60)
        assert torchrun.exitcode == 1, output.read_text()
        last = whole_checkpoints(folder)[-1]
        assert f"{number.name}: stopped after iteration {last}; iteration {last} is saved" in output.read_text()

    whole = prepare(tmp_path / "whole")
    total = f"train:total_iter={last}", f"logger:save_checkpoint_freq={last}"
    assert start(whole, *plain, *total, processes=2) == [0, 0], (whole / "output").read_text()
    assert_same_files(folder, whole, [f"training_states/{last}.state", f"models/net_g_{last}.pth"])
