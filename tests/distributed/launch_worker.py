"""Run by test_launch.py as one of several processes under (fake) srun or torchrun: works with the others for a while.

Arguments: launcher, what this rank does in iteration 3 (work, hang, mistake, save, restart), iterations, timeout.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dp_basicsr.distributed import heartbeat
from dp_basicsr.distributed.launch import beat, in_group, init_distributed
from dp_basicsr.errors import UserError, exit_on_user_error

import torch
from torch import distributed

heartbeat.PULSE, heartbeat.PATIENCE = 0.2, 2.0


def work(what: str, iterations: int, timeout: float) -> None:
    torch.set_num_threads(1)
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if again and os.environ["RANK"] == "1":
        time.sleep(2)  # rank 0 is there first, and must not take what the first round has left for news
    init_distributed(sys.argv[1], timeout=timeout)
    for iteration in range(1, iterations + 1):
        if iteration == 3 and what == "mistake":
            raise UserError("this image is broken")
        if iteration == 3 and what == "restart" and not again and distributed.get_rank() == 1:
            os._exit(9)
        if iteration == 3 and what == "hang":
            time.sleep(3600)
        if iteration == 3 and what == "save":
            if distributed.get_rank() == 0:
                time.sleep(3)
                Path("saved").touch()
            raise SystemExit(75)
        beat(iteration)
        value = torch.ones(1)
        distributed.all_reduce(value)
        assert value.item() == distributed.get_world_size()
        if distributed.get_rank() == 0:
            Path("iteration").write_text(str(iteration))
        time.sleep(0.05)


if __name__ == "__main__":
    with exit_on_user_error(), in_group():
        work(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
