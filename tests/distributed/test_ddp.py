"""The GAN step under DistributedDataParallel, where D runs twice before its one backward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_ranks_average_their_gradients_and_hold_one_model() -> None:
    """Gradients of G and D are the means of what each rank computes alone; the weights stay the same bits on all."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "tests.distributed.ddp_worker",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
