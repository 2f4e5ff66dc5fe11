"""The GAN step under DistributedDataParallel, where D runs twice before its one backward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import needs_gpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=needs_gpus(1, "NCCL"))])
def test_ranks_average_their_gradients_and_hold_one_model(backend: str) -> None:
    """Gradients of G and D are the means of what each rank computes alone; the weights stay the same bits on all."""
    processes = 2 if backend == "gloo" else torch.cuda.device_count()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *torchrun, "-m", "tests.distributed.ddp_worker", backend]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
