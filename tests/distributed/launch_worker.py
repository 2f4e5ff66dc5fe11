"""Run by test_launch.py as one of several processes under (fake) srun or torchrun: works with the others for a while.

Arguments: launcher, what this process does in iteration 3, iterations, timeout.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dp_basicsr.distributed import failure
from dp_basicsr.distributed.collectives import on_rank_0
from dp_basicsr.distributed.launch import in_group, init_distributed, should_resume
from dp_basicsr.errors import UserError, exit_on_user_error

import torch
from torch import distributed


def act(what: str) -> None:
    if what == "mistake":
        raise UserError("this image is broken")
    if what == "bug":
        should_resume(False, 0)  # type: ignore[arg-type]  # raises in our code
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if what == "mistake of rank 0":
        on_rank_0(lambda: act("mistake"))
    if what == "mistake of rank 1" and distributed.get_rank() == 1:
        act("mistake")


def work(what: str, iterations: int, timeout: float) -> None:
    torch.set_num_threads(1)
    failure.LINGER_SECONDS = 2.0  # enough for these
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and os.environ["RANK"] == os.environ["LATE"]:
        time.sleep(1)  # the other one must not take what the first start has left in the store for news
    # Together, because the timeout is also that of joining, and a busy machine may start one much later.
    Path(f"ready{os.environ['RANK']}").touch()
    while len(list(Path().glob("ready*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    init_distributed(sys.argv[1], timeout=timeout, cpu=True)
    for iteration in range(1, iterations + 1):
        if iteration == 3:
            act(what)
            if what == "restart" and not restarted and distributed.get_rank() == 1:
                os._exit(9)
        value = torch.ones(1)
        distributed.all_reduce(value)
        assert value.item() == distributed.get_world_size()
        if distributed.get_rank() == 0:
            Path("iteration").write_text(str(iteration))
        time.sleep(0.02)


if __name__ == "__main__":
    with exit_on_user_error(), in_group():
        work(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
