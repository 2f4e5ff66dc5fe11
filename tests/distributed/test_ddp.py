"""The GAN step under DistributedDataParallel, where D runs twice before its only backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.gpu import needs_gpus
from tests.support.processes import processes_in


@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=needs_gpus(1, "NCCL"))])
def test_ranks_average_their_gradients_and_hold_one_model(backend: str, tmp_path: Path) -> None:
    """Gradients of G and D are the means of what each rank computes alone; the weights stay the same bits on all."""
    ranks = range(2 if backend == "gloo" else torch.cuda.device_count())
    with processes_in(tmp_path) as processes:
        processes.start(*[[str(Path(__file__).with_name("ddp_worker.py")), backend] for _ in ranks])
        codes, outputs = processes.ends(*ranks, limit=300)
    assert codes == [0 for _ in ranks], outputs
