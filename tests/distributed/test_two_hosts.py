"""Runs that lose a process or a machine recover automatically and give the same results.

Two network namespaces, connected by a virtual cable and each with its own host name, are the two machines.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support.options import SMALL
from tests.support.processes import CONTEXT, TORCHRUN, processes_in, run_program, wait_until
from tests.support.programs import ROOT, losses_of, same_weights

TRAIN = [str(ROOT / "dp_basicsr/train.py"), "-opt", "small.yml"]
TOTAL = 12
HALF = ["--force_yml", "datasets:train:batch_size_per_gpu=1", "datasets:train:num_worker_per_gpu=0",
        f"train:total_iter={TOTAL}", "val=null", "dist_params={timeout: 60}"]  # fmt: skip
MODEL = "models/net_g_latest.pth"
LIMIT = 120
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000  # <sched.h>


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def run_on_host(space: str, name: str, *arguments: Any) -> None:
    """Run a program in a network namespace with its own host name."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as namespace:
        failed = libc.setns(namespace.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS)
    if failed:
        raise OSError(ctypes.get_errno(), space)
    socket.sethostname(name)
    # An elastic group waits for the second host when it forms, not when it forms again without.
    last_call = property(lambda _: timedelta(seconds=1 if Path("experiments").exists() else LIMIT))
    RendezvousTimeout.last_call = last_call  # type: ignore[assignment,method-assign]
    run_program(*arguments)


class Host:
    """One of the two machines: a network namespace with one end of the cable.

    Args:
        number: 1 or 2, the last part of its address.
    """

    def __init__(self, number: int) -> None:
        self.space, self.device = f"dp{os.getpid()}h{number}", f"dp{os.getpid()}v{number}"
        self.number, self.address = number, f"10.77.31.{number}"
        self.agents: list[BaseProcess] = []

    def connect(self) -> None:
        """Take this machine's end of the cable."""
        ip("link", "set", self.device, "netns", self.space)
        for command in (["addr", "add", f"{self.address}/24", "dev", self.device], ["link", "set", self.device, "up"],
                        ["link", "set", "lo", "up"]):  # fmt: skip
            ip("-n", self.space, *command)

    def torchrun(self, nodes: str, log: Path) -> BaseProcess:
        """Start torchrun here; the first machine holds the rendezvous."""
        conf = f"keep_alive_interval=1,keep_alive_max_attempt=3,is_host={2 - self.number}"
        line = [*TORCHRUN, "--nproc-per-node=1", "--max-restarts=3", f"--nnodes={nodes}", "--rdzv-backend=c10d",
                "--rdzv-id=two-hosts", "--rdzv-endpoint=10.77.31.1:29400", f"--local-addr={self.address}",
                f"--rdzv-conf={conf}", *TRAIN, *HALF]  # fmt: skip
        own = {"GLOO_SOCKET_IFNAME": self.device, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        arguments = (self.space, f"host{self.number}", line, str(log.parent), str(log), own)
        agent = CONTEXT.Process(target=run_on_host, args=arguments)
        agent.start()
        self.agents.append(agent)
        return agent

    def crash(self) -> None:
        """Send SIGKILL to everything that runs here."""
        for pid in ip("netns", "pids", self.space).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for agent in self.agents:
            agent.join()


def exit_code(agent: BaseProcess) -> int | None:
    agent.join(LIMIT)
    return agent.exitcode


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """The two machines, removed after the test."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two hosts are network namespaces: needs root and ip (iproute2)")
    pair = Host(1), Host(2)
    try:
        try:
            for host in pair:
                ip("netns", "add", host.space)
            ip("link", "add", pair[0].device, "type", "veth", "peer", "name", pair[1].device)
            for host in pair:
                host.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not to be had here: {error.stderr.strip()}")
        yield pair
    finally:
        for host in pair:
            with suppress(subprocess.CalledProcessError):
                host.crash()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", host.device], capture_output=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Trains on two processes of this machine, once, on the images that each test makes anew, always the same."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def train(pairs: Path) -> Path:
        if not (folder / "small.yml").is_file():
            (folder / "small.yml").write_text(SMALL)
            shutil.copytree(pairs, folder / "pairs")
            with processes_in(folder) as processes:
                processes.start(*[[*TRAIN, *HALF]] * 2)
                codes, outputs = processes.ends(0, 1, limit=LIMIT)
                assert codes == [0, 0], outputs
        return folder / "experiments/small"

    return train


@pytest.fixture
def experiment(pairs: Path, tmp_path: Path) -> Path:
    (tmp_path / "small.yml").write_text(SMALL)
    return tmp_path / "experiments/small"


def is_saved(experiment: Path, iteration: int) -> bool:
    return (experiment / "training_states" / f"{iteration}.state").is_file()


def written_losses(experiment: Path) -> dict[int, str]:
    """The losses of each iteration; for a repeated one, the second."""
    logs = sorted(experiment.glob("train_small_*.log"), key=lambda path: path.stat().st_mtime_ns)
    return {number: line for path in logs for number, line in losses_of(path.read_text()).items()}


def train_and_be_killed(state: str, *arguments: Any) -> None:
    """Train; on the first start rank 1 kills itself once ``state`` is saved."""

    def kill_after_state() -> None:
        wait_until(Path(state).is_file)
        os.kill(os.getpid(), signal.SIGKILL)

    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        threading.Thread(target=kill_after_state, daemon=True).start()
    run_program(*arguments)


def test_a_killed_process_is_restarted(
    experiment: Path, pairs: Path, tmp_path: Path, torchrun: LaunchConfig, undisturbed: Callable[[Path], Path]
) -> None:
    """torchrun --max-restarts: from the last checkpoint, without --auto_resume, bit-exact."""
    state, output = experiment / "training_states/3.state", tmp_path / "output"
    elastic_launch(torchrun, train_and_be_killed)(str(state), [*TRAIN, *HALF], str(tmp_path), str(output), {})
    assert "Resuming training from" in output.read_text()
    reference = undisturbed(pairs)
    assert written_losses(experiment) == written_losses(reference)
    assert same_weights(experiment / MODEL, reference / MODEL)


def test_srun_trains_and_only_rank_0_writes(pairs: Path, tmp_path: Path, undisturbed: Callable[[Path], Path]) -> None:
    """Two plain processes in two folders: one model, the losses of torchrun's two; nothing in the second folder."""
    folders = [tmp_path / "host1", tmp_path / "host2"]
    for folder in folders:
        folder.mkdir()
        (folder / "small.yml").write_text(SMALL.replace("pairs/", f"{pairs}/"))
    slurm = {"SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0",
             "SLURM_NODELIST": "127.0.0.[1-2]", "SLURM_JOB_ID": str(os.getpid()), "PATH": os.environ["PATH"],
             "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip
    with processes_in(tmp_path) as srun:
        srun.start(*[[*TRAIN, "--launcher", "slurm", *HALF, "train:total_iter=3"]] * 2, folders=folders, **slurm)
        codes, outputs = srun.ends(0, 1, limit=LIMIT)
        assert codes == [0, 0], outputs
    experiment, reference = folders[0] / "experiments/small", undisturbed(pairs)
    assert [path.name for path in folders[1].rglob("*")] == ["small.yml"]
    assert (experiment / MODEL).is_file()
    losses = written_losses(reference)
    assert written_losses(experiment) == {iteration: losses[iteration] for iteration in (1, 2, 3)}
    log = next(experiment.glob("train_*.log")).read_text()
    assert "2 process(es), 1 CPU thread(s) each, x 1 pairs = 2 pairs, 0.125 times the paper's 16" in log
    assert "G 0.001, D 0.001), not scaled" in log
    assert re.search(r"img_per_s: \d", log)


def test_a_killed_host_is_brought_back(
    hosts: tuple[Host, Host], experiment: Path, tmp_path: Path, pairs: Path, undisturbed: Callable[[Path], Path]
) -> None:
    _, second = hosts
    logs = [tmp_path / "host1.log", tmp_path / "host2.log"]
    agent, _ = (host.torchrun("2", log) for host, log in zip(hosts, logs, strict=True))
    wait_until(lambda: is_saved(experiment, 3))
    second.crash()
    wait_until(lambda: "error: another process has ended" in logs[0].read_text())
    back = second.torchrun("2", logs[1])
    codes = [exit_code(agent), exit_code(back)]
    said = "".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    assert "Resuming training from" in said
    reference = undisturbed(pairs)
    assert written_losses(experiment) == written_losses(reference)
    assert same_weights(experiment / MODEL, reference / MODEL)


def test_one_host_continues_alone(hosts: tuple[Host, Host], experiment: Path, tmp_path: Path) -> None:
    """Elastic, --nnodes=1:2: the group forms again with the remaining host."""
    logs = [tmp_path / "host1.log", tmp_path / "host2.log"]
    agent, _ = (host.torchrun("1:2", log) for host, log in zip(hosts, logs, strict=True))
    wait_until(lambda: is_saved(experiment, 3))
    hosts[1].crash()
    code = exit_code(agent)
    said = logs[0].read_text()
    assert code == 0, said
    assert "2 process(es)" in said
    assert "1 process(es)" in said.partition("Resuming training from")[2]
    assert max(written_losses(experiment)) == TOTAL
    assert (experiment / MODEL).is_file()
