"""Training in a forked process, which starts at once since everything is imported, and which is hit on its way.

What happens to a run happens at an event of its own, so that it is always hit:

- ``step``: the generator's forward pass in a step; ``metric``: a validation image is measured;
- ``disk``: before a file is synced, renamed or deleted.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from dp_basicsr import train
from dp_basicsr.archs.rrdbnet_dp_arch import RRDBNetDP
from dp_basicsr.utils import atomic_io

import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

from tests.support.processes import prepare_process, redirect_output

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
            rival = os.fork()
            if not rival:
                train_and_be_hit(self.order | {"at": None}, {})
            Path("rival").write_text(str(os.waitstatus_to_exitcode(os.waitpid(rival, 0)[1])))


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


def train_and_be_hit(order: Order, environment: dict[str, str]) -> NoReturn:
    """Train in this process, to its end; the output goes into the file ``output`` of the run's folder."""
    code = 1
    try:
        prepare_process(environment)
        os.chdir(order["folder"])
        redirect_output("output")
        if order.get("group"):
            os.setpgrp()
        if "limit" in order:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        atomic_io.RETRY_AFTER = 0.1
        event.order, event.counts = order, {}
        count_disk_events()
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
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        # A thread may end while it is looked at.
        with contextlib.suppress(OSError):
            names.append(path.read_text())
    return [name for name in names if "pt_gloo" in name]
