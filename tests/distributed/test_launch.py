"""Several processes: found under srun and torchrun, one mini-batch, one writer, and an end for all when one is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dp_basicsr.distributed import launch
from dp_basicsr.distributed.launch import init_distributed, mark_experiment, returns_are_lost, should_resume
from dp_basicsr.distributed.slurm import SLURM_PORTS, first_host, slurm_port
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.training.progress import describe_batch

import pytest
import torch
from torch.distributed import DistStoreError, HashStore

from tests.test_train_and_test import ROOT, SMALL, losses_of, run_well

WORKER = [sys.executable, str(ROOT / "tests/distributed/launch_worker.py")]
SLURM_JOB = iter(range(os.getpid() * 10, os.getpid() * 10 + 1000))


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `scontrol` that knows one list of hosts, first on PATH."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] || exit 1\nprintf "127.0.0.1\\nnode2\\n"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


class Processes:
    """Plain processes with SLURM's variables, as srun starts them; none outlives its test."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def start(self, *commands: list[str], folders: list[Path] | None = None, **environment: str) -> None:
        job = str(next(SLURM_JOB))
        for rank, command in enumerate(commands):
            variables = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(len(commands)),
                         "SLURM_NODELIST": "node[1-2]", "SLURM_JOB_ID": job, "SLURM_STEP_ID": "0",
                         "SLURM_CPUS_PER_TASK": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
            self.all.append(
                subprocess.Popen(
                    command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    cwd=folders[rank] if folders else None, env={**os.environ, **variables, **environment},
                )
            )  # fmt: skip

    def ends(self, *ranks: int, limit: float = 60) -> tuple[list[int], str]:
        """Exit codes and all that was said, of processes that must end by themselves."""
        outputs = [self.all[rank].communicate(timeout=limit)[1] for rank in ranks]
        return [self.all[rank].returncode for rank in ranks], "".join(outputs)


@pytest.fixture
def processes(scontrol: None) -> Iterator[Processes]:
    made = Processes()
    yield made
    for process in made.all:
        process.kill()
        process.wait()


def until(path: Path, value: int) -> None:
    """Wait until the processes have come to an iteration."""
    end = time.monotonic() + 60
    while not path.is_file() or int(path.read_text() or 0) < value:
        assert time.monotonic() < end, "the processes do not come to their work"
        time.sleep(0.02)


def test_srun_trains_and_rank_0_alone_writes(pairs: Path, tmp_path: Path, processes: Processes) -> None:
    """Two plain processes in two folders: one model, the losses of torchrun's two; nothing in the second folder."""
    folders = [tmp_path / "host1", tmp_path / "host2"]
    for folder in folders:
        folder.mkdir()
        (folder / "small.yml").write_text(SMALL.replace("pairs/", f"{pairs}/"))
    half = ["datasets:train:batch_size_per_gpu=1", "train:total_iter=3", "val=null"]
    command = [sys.executable, str(ROOT / "dp_basicsr/train.py"), "-opt", "small.yml", "--launcher", "slurm",
               "--force_yml", *half]  # fmt: skip
    processes.start(command, command, folders=folders, TORCH_HOME=str(tmp_path))
    codes, log = processes.ends(0, 1)
    assert codes == [0, 0], log
    assert (folders[0] / "experiments/small/models/net_g_latest.pth").is_file()
    assert [path.name for path in folders[1].rglob("*")] == ["small.yml"]

    (tmp_path / "small.yml").write_text(SMALL)
    torchrun = run_well("train.py", "-opt", "small.yml", "--force_yml", *half, "name=torchrun", processes=2)
    (own,) = (folders[0] / "experiments/small").glob("train_small_*.log")
    assert losses_of(own.read_text()) == losses_of(torchrun)
    assert "2 process(es), 1 CPU thread(s) each, x 1 pairs = 2 pairs, 0.125 times the paper's 16" in torchrun
    assert "G 0.001, D 0.001), not scaled" in torchrun
    assert re.search(r"img_per_s: \d", torchrun)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_named(lost: int, tmp_path: Path, processes: Processes) -> None:
    """SIGKILL, the out-of-memory killer's: the others end long before the timeout. Rank 0 holds the group's store."""
    worker = [*WORKER, "slurm", "work", "100000", "300"]
    processes.start(worker, worker, worker)
    until(tmp_path / "iteration", 5)
    processes.all[lost].kill()
    codes, said = processes.ends(*{0, 1, 2} - {lost})
    assert codes == [75, 75]
    assert re.search(rf"error: rank {lost} on \S+ \(pid {processes.all[lost].pid}, iteration \d+\).*not answered", said)
    assert f"rank {3 - lost} on" not in said.replace(f"rank {lost} on", "")


def test_a_stopped_process_is_named(tmp_path: Path, processes: Processes) -> None:
    """SIGSTOP, as a host that is off: no connection ends. With rank 0 the group's store does not answer either."""
    worker = [*WORKER, "slurm", "work", "100000", "3"]
    processes.start(worker, worker)
    until(tmp_path / "iteration", 5)
    processes.all[0].send_signal(signal.SIGSTOP)
    codes, said = processes.ends(1)
    assert codes == [75]
    assert re.search(rf"error: rank 0 on \S+ \(pid {processes.all[0].pid}, iteration \d+\).*not answered", said)


def test_a_hanging_process_is_named(processes: Processes) -> None:
    """Its pulse goes on, its training loop does not."""
    worker = [*WORKER, "slurm", "work", "100000", "3"]
    processes.start(worker, [*WORKER, "slurm", "hang", "100000", "3"])
    codes, said = processes.ends(0, 1)
    assert codes[0] == 75
    assert re.search(r"error: rank 1 on \S+ \(pid \d+, iteration 2\) hangs: .* in iteration 3 for \d+ s", said)


def test_a_process_with_an_error_of_its_own_is_quoted(processes: Processes) -> None:
    """One rank's broken image ends all of them, with one message."""
    worker = [*WORKER, "slurm", "work", "100000", "300"]
    processes.start(worker, worker, [*WORKER, "slurm", "mistake", "100000", "300"])
    codes, said = processes.ends(0, 1, 2)
    assert codes == [1, 1, 2]  # not 75: a supervisor would start it for ever
    assert "error: this image is broken\n" in said
    assert "rank 2" in said
    assert "Traceback" not in said


def test_rank_0_saves_in_peace(tmp_path: Path) -> None:
    """All are asked to stop: those that have nothing to save must not end first, torchrun would stop rank 0."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *WORKER[1:], "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*line, "save", "5", "300"], capture_output=True, text=True, env=environment, timeout=60)
    assert (tmp_path / "saved").exists()
    assert "exitcode  : 75" in done.stderr


def test_torchrun_starts_the_group_again() -> None:
    """One store may serve all rounds: a process that comes back early must not meet the addresses of the dead."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*line, *WORKER[1:], "none", "restart", "5", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr


def test_torchrun_without_restarts_ends_with_its_dead(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *WORKER[1:], "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*line, "work", "100000", "300"], stderr=subprocess.PIPE, text=True, env=environment) as run:
        until(tmp_path / "iteration", 5)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        victim = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(int(victim), signal.SIGKILL)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert re.search(rf"exitcode\s*: -9 \(pid: {victim}\)", said)


def test_a_host_without_brackets_needs_no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert first_host("node7") == "node7"
    with pytest.raises(UserError, match="scontrol show hostnames"):
        first_host("node[7-8]")


def test_the_first_of_many_hosts_comes_from_scontrol(scontrol: None) -> None:
    assert first_host("node[1-2]") == "127.0.0.1"
    with pytest.raises(UserError, match="does not name the first host"):
        first_host("node[8-9]")


def test_jobs_and_steps_on_one_node_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for job in range(987_000, 987_500):
        for step in range(4):
            monkeypatch.setenv("SLURM_JOB_ID", str(job))
            monkeypatch.setenv("SLURM_STEP_ID", str(step))
            ports.add(slurm_port())
    assert len(ports) == 2000
    assert min(ports) > 1023
    assert max(ports) < 32768  # where Linux takes the ports of outgoing connections from


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """The environment of a task; what a test leaves in it goes with the test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NODELIST": "node1"}
    for name, value in (task | variables).items():
        monkeypatch.setenv(name, value)


def test_a_step_on_a_part_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NODELIST="node5", SLURM_JOB_ID="7", OMP_NUM_THREADS="1")
    monkeypatch.setattr(launch, "_join", lambda backend, timeout: None)
    assert init_distributed("slurm")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "4", "1", "node5", str(SLURM_PORTS[28])]


@pytest.mark.parametrize(
    ("environment", "visible", "gpu"),
    [({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 4, 3), ({"LOCAL_RANK": "3"}, 1, 0), ({"LOCAL_RANK": "1"}, 4, 1)],
)
def test_the_gpu_of_a_process(
    environment: dict[str, str], visible: int, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By local rank; srun may show each task one GPU alone."""
    chosen, joined = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(launch, "_join", lambda backend, timeout: joined.append(backend))
    for name, value in ({"RANK": "3", "WORLD_SIZE": "8"} | environment).items():
        monkeypatch.setenv(name, value)
    assert init_distributed("none")
    assert init_distributed("none", cpu=True)
    assert init_distributed("none", backend="gloo")
    assert (chosen, joined) == ([gpu, gpu], ["nccl", "gloo", "gloo"])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="nproc_per_node=4: there are 2 GPUs"):
        init_distributed("none")


def test_processes_that_do_not_come_are_told_apart_from_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_NODELIST="127.0.0.1", SLURM_JOB_ID=str(os.getpid()))
    monkeypatch.setattr(launch, "PATIENCE", 0)
    with pytest.raises(UserError, match=r"rank 1 of 2: the processes have not come together at 127\.0\.0\.1:\d+"):
        init_distributed("slurm", timeout=0.5)


def test_a_network_card_that_is_not_there_is_a_user_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(UserError, match=r"nosuch0 .*GLOO_SOCKET_IFNAME=eth0"):
        init_distributed("none", cpu=True)


@pytest.mark.parametrize("timeout", [0, -1])
def test_timeout_is_checked(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch)
    with pytest.raises(UserError, match="dist_params: timeout"):
        init_distributed("slurm", timeout=timeout)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({"SLURM_RESTART_COUNT": "2"}, True),
    ],
)
def test_a_restarted_job_goes_on(
    variables: dict[str, str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert should_resume(False, str(tmp_path)) is expected
    assert should_resume(True, str(tmp_path))


def test_an_elastic_job_knows_its_own_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that joins restarts the processes without a count; the job's id is the same on all its nodes."""
    mark_experiment(str(tmp_path))
    assert not should_resume(False, str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
    assert not should_resume(False, str(tmp_path))
    mark_experiment(str(tmp_path))
    assert should_resume(False, str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 2")
    assert not should_resume(False, str(tmp_path))


@pytest.mark.parametrize(
    ("per_process", "processes", "parts", "expected"),
    [
        (16, 1, 1, ["1 process(es)", "x 16 pairs = 16 pairs, the paper's 16", "400000 iterations see 6,400,000 pairs"]),
        (8, 4, 2, ["4 process(es)", "x 8 pairs in 2 parts = 32 pairs, 2 times the paper's 16", "see 12,800,000 pairs"]),
    ],
)
def test_the_mini_batch_is_stated(per_process: int, processes: int, parts: int, expected: list[str]) -> None:
    """And that the learning rate is not scaled with it. Accumulation splits the batch, it does not add to it."""
    train = {"total_iter": 400_000, "optim_g": {"lr": 1e-4}, "optim_d": {"lr": 2e-4}, "grad_accumulation": parts}
    line = describe_batch({"world_size": processes, "train": train}, per_process * processes)
    assert all(part in line for part in expected)
    assert "as written (G 0.0001, D 0.0002), not scaled" in line


@pytest.mark.parametrize(("variable", "said"), [("0", True), ("1", False)])
def test_a_mistake_before_there_is_a_group_is_said_once_a_machine(
    variable: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_LOCALID", variable)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        raise UserError("no such file")
    assert ("error: no such file" in capsys.readouterr().err) is said


@pytest.mark.parametrize(
    ("hosts", "restarts", "shared", "expected"),
    [("2", "3", "True", True), ("2", "3", "False", False), ("1", "3", "True", False), ("2", "0", "True", False)],
)
def test_a_store_that_keeps_a_lost_host_out_is_seen(
    hosts: str, restarts: str, shared: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", hosts)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    assert returns_are_lost() is expected


def names_of_starts(store: HashStore, late: int) -> set[str]:
    """What three processes (threads here) agree on, one of which comes later than the others."""

    def start(rank: int) -> str:
        time.sleep(0.3 * (rank == late))
        return launch._name_of_this_start(store, rank, 3, timeout=30)

    with ThreadPoolExecutor(3) as pool:
        return set(pool.map(start, range(3)))


def test_a_start_has_a_name_that_no_earlier_one_had() -> None:
    """All restarts of torchrun share a store: what is left in it must not be taken for that of the living."""
    store = HashStore()
    names = [names_of_starts(store, late) for late in (0, 1, 2, 0)]
    assert [len(name) for name in names] == [1, 1, 1, 1]
    assert len(set().union(*names)) == 4


def test_processes_that_do_not_start_are_given_up() -> None:
    store = HashStore()
    names_of_starts(store, 0)
    with pytest.raises(DistStoreError, match="the 3 processes have not agreed"):
        launch._name_of_this_start(store, 0, 3, timeout=0.3)
