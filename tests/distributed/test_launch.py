"""Several processes under srun and torchrun: one mini-batch, one writer, and all end when one is lost."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr import errors
from dp_basicsr.distributed import failure, launch
from dp_basicsr.distributed.launch import init_distributed, mark_experiment, should_resume
from dp_basicsr.distributed.slurm import SLURM_PORTS, first_host, slurm_port
from dp_basicsr.errors import EXIT_RETRY, ProcessError, UserError, exit_on_user_error
from dp_basicsr.options.schema import Train
from dp_basicsr.runs.log import describe_batch

import pytest
import torch
from torch import distributed
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support.processes import CONTEXT, Processes, free_port, processes_in, rank_variables, run_program, wait_until
from tests.support.programs import ROOT

WORKER = str(ROOT / "tests/distributed/launch_worker.py")
LIMIT = 200.0  # seconds for what takes one on a quiet machine


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with processes_in(tmp_path) as made:
        yield made


def worker(what: str = "work", iterations: int = 100_000, timeout: float = 300) -> list[str]:
    """A process of launch_worker.py."""
    return [WORKER, "none", what, str(iterations), str(timeout)]


def reached(path: Path, value: int) -> bool:
    """Whether the processes have reached an iteration."""
    return path.is_file() and int(path.read_text() or 0) >= value


@pytest.mark.parametrize(("number", "count", "timeout"), [(signal.SIGKILL, 3, 300), (signal.SIGSTOP, 2, 3)])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_others(
    number: int, count: int, timeout: float, lost: int, tmp_path: Path, processes: Processes
) -> None:
    """SIGKILL, as from the out-of-memory killer: long before the timeout, and one reports it.

    SIGSTOP, like a host that is off: no connection is closed. Rank 0 takes the store with it, so it is unknown whether
    it failed with its own error.
    """
    processes.start(*[worker(timeout=timeout)] * count)
    wait_until(lambda: reached(tmp_path / "iteration", 5))
    pid = processes.all[lost].pid
    assert pid
    os.kill(pid, number)
    codes, outputs = processes.ends(*set(range(count)) - {lost}, limit=LIMIT)
    # At the moment of the loss rank 2 may be waiting for rank 0 alone. It then learns of it when rank 0, and the store
    # with it, ends.
    later = {EXIT_RETRY, 1} if lost else {1}
    assert codes[0] == (EXIT_RETRY if lost else 1), outputs
    assert {*codes[1:]} <= later, outputs
    (said,) = filter(None, outputs)
    reason = r"\w.*" if number == signal.SIGKILL else "Timed out.*"
    assert re.fullmatch(rf"error: another process has ended or does not answer \({reason}\); .* --auto_resume\n", said)
    # accelerate#3861: a validation that is longer than the timeout would end a resumed run, too.
    assert ("set a larger dist_params: timeout" in said) == (number == signal.SIGSTOP)


@pytest.mark.parametrize(
    ("what", "rank", "code", "message"),
    [
        ("mistake", 0, 2, "error: this image is broken"),
        ("mistake", 2, 2, "error: this image is broken"),
        ("bug", 0, 1, "Traceback"),
        ("memory", 1, 2, "error: out of memory (CUDA out of memory)"),
    ],
)
def test_the_error_of_one_process_is_the_message(
    what: str, rank: int, code: int, message: str, processes: Processes
) -> None:
    """The exit codes of the others are not 75, or a supervisor would restart the run forever."""
    processes.start(*(worker(what if number == rank else "work") for number in range(3)))
    codes, outputs = processes.ends(0, 1, 2, limit=LIMIT)
    assert codes == [code if number == rank else 1 for number in range(3)]
    assert message in outputs.pop(rank)
    # With rank 0 the store is gone, and with it whether a message was printed: rank 1 prints another.
    assert outputs[1] == ""
    assert rank == 0 or outputs[0] == ""


def test_the_error_of_another_machine_is_told_on_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log is elsewhere; on its own machine nobody repeats it."""
    store, codes = distributed.HashStore(), []
    monkeypatch.setattr(failure.os, "_exit", codes.append)
    for host, error in (("a", UserError("no such folder")), *[(name, DistError("closed")) for name in "abb"]):
        monkeypatch.setattr(failure, "gethostname", lambda host=host: host)
        failure.fail(error, store)
    assert capsys.readouterr().err == "error: no such folder\nerror: another process failed, on a: no such folder\n"
    assert codes == [2, 1, 1, 1]


def test_an_error_of_all_processes_is_printed_once(processes: Processes) -> None:
    processes.start(*[worker("mistake of rank 0")] * 3)
    codes, outputs = processes.ends(0, 1, 2, limit=LIMIT)
    assert codes == [2, 2, 2]
    assert "".join(outputs) == "error: this image is broken\n"


def test_torchrun_names_the_process_and_its_error(torchrun: LaunchConfig, tmp_path: Path) -> None:
    torchrun.max_restarts = 0
    command = worker("mistake of rank 1", iterations=5)
    with pytest.raises(ChildFailedError, match=r"rank +: 1 [\s\S]*exitcode +: 2 [\s\S]*this image is broken"):
        elastic_launch(torchrun, run_program)(command, str(tmp_path), str(tmp_path / "output"), {})
    assert (tmp_path / "output").read_text() == "error: this image is broken\n"


@pytest.mark.parametrize("late", ["0", "1"])
def test_torchrun_starts_the_group_again(late: str, torchrun: LaunchConfig, tmp_path: Path) -> None:
    """Both starts share one store: an early process must not find the addresses of the first start."""
    command = worker("restart", iterations=5)
    elastic_launch(torchrun, run_program)(command, str(tmp_path), str(tmp_path / "output"), {"LATE": late})
    assert int((tmp_path / "iteration").read_text()) == 5


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node[03-07,12]", "node03"), ("n7,node[01-02]", "n7"), ("r[1-2]n[04,9]-ib,x", "r1n04-ib")],
)
def test_the_first_host_is_read_from_the_node_list(nodes: str, first: str) -> None:
    """open-mmlab/mmcv#700: a container has no scontrol."""
    assert first_host(nodes) == first


def test_a_process_that_others_do_not_join_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pytorch/pytorch#81704: variables of a launcher that are left in a shell or set by Kubeflow."""
    variables = rank_variables(0, 2, free_port())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "SILENT_SECONDS", 0.1)
    with pytest.raises(ProcessError, match="rank 0 of 2"):
        init_distributed("none", timeout=1, cpu=True)
    assert "waiting for 1 other process(es) at 127.0.0.1:" in capsys.readouterr().err
    monkeypatch.delenv("LOCAL_RANK")
    assert not init_distributed("none", cpu=True)
    assert "RANK=0 and WORLD_SIZE=2 are set without LOCAL_RANK" in capsys.readouterr().err


def test_jobs_and_steps_on_one_node_have_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for job, step in itertools.product(range(987_000, 987_500), range(4)):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setenv("SLURM_STEP_ID", str(step))
        ports.add(slurm_port())
    assert len(ports) == 2000
    assert ports <= set(range(1024, 32768))  # below Linux's ports for outgoing connections


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """The environment of a task, restored after the test."""
    for name in rank_variables(0, 1, ""):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NODELIST": "node1"}
    for name, value in (task | variables).items():
        monkeypatch.setenv(name, value)


def test_a_shell_within_a_job_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """octopus-automl#445: SLURM's variables of an interactive job, without srun, made it wait for other tasks."""
    slurm(monkeypatch)
    assert not init_distributed("none")


def test_a_step_on_a_part_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NODELIST="node5", SLURM_JOB_ID="7", OMP_NUM_THREADS="1")
    monkeypatch.setattr(launch, "_join", lambda *_: None)
    assert init_distributed("slurm")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "4", "1", "node5", str(SLURM_PORTS[28])]


@pytest.mark.parametrize(
    ("environment", "visible", "gpu"),
    [({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 4, 3), ({"LOCAL_RANK": "3"}, 1, 0), ({"LOCAL_RANK": "1"}, 4, 1),
     ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 2, None)],
)  # fmt: skip
def test_the_gpu_of_a_process(
    environment: dict[str, str], visible: int, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By local rank; srun may show each task only one GPU. Too few are refused by the one that has a GPU and prints."""
    chosen, joined = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(launch, "_join", lambda backend, *_: joined.append(backend))
    for name, value in ({"RANK": "3", "WORLD_SIZE": "8"} | environment).items():
        monkeypatch.setenv(name, value)
    if gpu is None:
        with pytest.raises(UserError, match="nproc_per_node=4: expected at most one process per GPU, got 2"):
            init_distributed("none")
        return
    assert init_distributed("none")
    assert init_distributed("none", cpu=True)
    assert init_distributed("none", backend="gloo")
    assert (chosen, joined) == ([gpu, gpu], ["nccl", "gloo", "gloo"])


def test_missing_processes_are_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_NODELIST="127.0.0.1", SLURM_JOB_ID=str(os.getpid()))
    with pytest.raises(UserError, match="dist_params: timeout"):
        init_distributed("slurm", timeout=0)
    with pytest.raises(ProcessError, match=r"rank 1 of 2: the processes could not connect at 127\.0\.0\.1:\d+"):
        init_distributed("slurm", timeout=0.5)


def test_a_missing_network_interface_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (rank_variables(0, 1, free_port()) | {"GLOO_SOCKET_IFNAME": "nosuch0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"nosuch0 .*GLOO_SOCKET_IFNAME=eth0"):
        init_distributed("none", cpu=True)


def test_a_restarted_job_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchrun's and SLURM's counts, or by the job's id: a joining node restarts the processes without counting."""
    mark_experiment(str(tmp_path))
    for variables, expected in (
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({"SLURM_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RUN_ID": "job 1"}, False),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert should_resume(False, str(tmp_path)) is expected, variables
            assert should_resume(True, str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 1")
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
    """And the learning rate is not scaled with it. Accumulation splits the batch and does not enlarge it."""
    train = Train.model_construct(total_iter=400_000, grad_accumulation=parts)
    weights = [torch.zeros(1)]
    # D's options leave the rate to Adam.
    model = SimpleNamespace(optimizer_g=torch.optim.Adam(weights, lr=1e-4), optimizer_d=torch.optim.Adam(weights))
    line = describe_batch(train, processes, per_process * processes, model)
    assert all(part in line for part in expected)
    assert "as given (G 0.0001, D 0.001), not scaled" in line


@pytest.mark.parametrize(
    ("variable", "rank", "arguments", "said", "waits"),
    [("SLURM_LOCALID", "0", "--launcher slurm", True, []), ("SLURM_LOCALID", "1", "--launcher slurm", False, []),
     ("SLURM_LOCALID", "1", "", True, []), ("LOCAL_RANK", "0", "", True, []),
     ("LOCAL_RANK", "1", "", False, [errors.STAGGER_SECONDS])],
)  # fmt: skip
def test_an_error_before_the_group_forms_is_printed_once_per_machine(
    variable: str, rank: str, arguments: str, said: bool, waits: list[float], monkeypatch: pytest.MonkeyPatch,
    capsys: Any
) -> None:  # fmt: skip
    """And torchrun does not end local rank 0 before it has printed; tasks of srun without a group do not share it."""
    waited: list[float] = []
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setenv(variable, rank)
    if variable == "LOCAL_RANK":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        raise UserError("no such file")
    assert ("error: no such file" in capsys.readouterr().err) is said
    assert waited == waits


@pytest.mark.parametrize(
    ("hosts", "restarts", "shared"), [("2", "3", "True"), ("2", "3", "False"), ("1", "3", "True"), ("2", "0", "True")]
)
def test_a_store_that_prevents_rejoining_is_refused(
    hosts: str, restarts: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch, GROUP_WORLD_SIZE=hosts, TORCHELASTIC_MAX_RESTARTS=restarts, TORCHELASTIC_USE_AGENT_STORE=shared)
    monkeypatch.setattr(launch, "_join", lambda *_: None)
    message = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all hosts"
    prevents = (hosts, restarts, shared) == ("2", "3", "True")
    with pytest.raises(UserError, match=message) if prevents else nullcontext():
        assert init_distributed("slurm")


def send_imported(pipe: Connection) -> None:
    pipe.send({"dp_basicsr.runs.training", "tensorboard", "torch._dynamo"} & sys.modules.keys())


def test_everything_is_imported_before_the_processes_of_a_test_start() -> None:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=send_imported, args=(theirs,))
    process.start()
    assert len(ours.recv()) == 3
    process.join()
