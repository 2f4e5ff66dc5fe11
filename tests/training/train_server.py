"""Run by tests: trains in forked children, which start at once since everything is imported, and lets them be hit.

Each line on stdin is an order, a JSON object; each ends in a line on stdout with the exit codes of the processes
(negative: the signal that killed it). What happens to a run happens at an event of its own, so that it is always hit:

- ``step``: the generator's forward pass in a step; ``metric``: a validation image is measured;
- ``disk``: before a file is synced, renamed or deleted.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import dp_basicsr.losses
import dp_basicsr.models
import dp_basicsr.options.completion
import dp_basicsr.training.dry_run
import dp_basicsr.training.run  # noqa: F401  (train.main imports these; the children must not wait for it)
from dp_basicsr import train
from dp_basicsr.archs.rrdbnet_dp_arch import RRDBNetDP
from dp_basicsr.utils import atomic_io

import cv2
import numpy as np
import torch
import torch.utils.tensorboard
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

Order = dict[str, Any]

GLOO_IS_LEFT = 99  # exit code


class Events:
    """Counts what happens in a child, and acts at the given place."""

    def __init__(self) -> None:
        self.order: Order = {}
        self.counts: dict[str, int] = {}

    def __call__(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        if [name, self.counts[name]] != self.order.get("at"):
            return
        for number, signal_number in enumerate(self.order.get("signals", [])):
            time.sleep(1.2 * number)
            if self.order.get("group"):  # from another process: what its parent sends, a loader's worker obeys
                subprocess.run(["kill", f"-{signal_number}", "--", f"-{os.getpgrp()}"], check=False)
            else:
                os.kill(os.getpid(), signal_number)
        if "after" in self.order:  # SIGALRM that nobody handles: the kernel ends the process there and then, as SIGKILL
            signal.setitimer(signal.ITIMER_REAL, self.order["after"])
        if "rival" in self.order:
            code = os.waitstatus_to_exitcode(os.waitpid(start(self.order | {"at": None}, {}), 0)[1])
            Path("rival").write_text(str(code))


event = Events()


@ARCH_REGISTRY.register()
class NoisyRRDBNet(RRDBNetDP):
    """A generator whose training depends on every random state that there is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if self.training:
            event("step")
            out = out + 0.01 * torch.randn_like(out) * (random.random() + np.random.rand() + random.gauss(0, 1))
        return out


@METRIC_REGISTRY.register()
def counted_psnr(img: Any, img2: Any, crop_border: int = 4, **settings: Any) -> float:
    event("metric")
    return calculate_psnr(img, img2, crop_border=crop_border)


def count_disk_events() -> None:
    def counted(function: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            event("disk")
            return function(*arguments, **settings)

        return call

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]


def start(order: Order, environment: dict[str, str]) -> int:
    """Fork a child that trains; its output goes into the file ``output`` of its folder."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        os.chdir(order["folder"])
        output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        if order.get("group"):
            os.setpgrp()
        if "limit" in order:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        atomic_io.RETRY_AFTER = 0.1
        event.order, event.counts = order, {}
        train.main(order["argv"])
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(GLOO_IS_LEFT if gloo_threads() else code)


def gloo_threads() -> list[str]:
    """Threads of process groups that still exist: they can abort Python's exit."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "pt_gloo" in name]


def execute(order: Order) -> list[int]:
    """Run an order to its end: the exit code of each process."""
    processes = order.get("processes", 0)
    if not processes:
        children = [start(order, {})]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        children = []
        for rank in range(processes):
            one = order if order.get("rank", 0) == rank else {**order, "at": None}
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            children.append(start(one, address | {name: str(value) for name, value in ranks.items()}))
    if "kill_after" in order:
        time.sleep(order["kill_after"])
        for child in children:
            os.kill(child, signal.SIGKILL)  # not yet waited for, so it is this child or its remains
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    count_disk_events()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(execute(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
