"""Run by test_ddp.py as one of several processes: three steps on a batch of each rank's own, then the ranks compare.

The argument is the backend: gloo on the CPU, or nccl with a GPU for each rank.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from pathlib import Path

import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401
from dp_basicsr.distributed.collectives import start_maximum
from dp_basicsr.distributed.launch import in_group, init_distributed

import torch
from basicsr.models import build_model
from torch import distributed

from tests.support.options import model_options, random_batch


def gradients(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])


def same_on_all_ranks(values: torch.Tensor) -> bool:
    gathered = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, values)
    return all(torch.equal(gathered[0], other) for other in gathered)


def check(backend: str) -> None:
    """Three steps: gradients are the means of what each rank computes alone, the weights the same bits on all."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(rank)  # DDP gives every rank the networks of rank 0
    opt = model_options("ESRGANDPModel", Path(tempfile.gettempdir())) | {"num_gpu": int(backend == "nccl")}
    model = build_model(opt | {"dist": True, "rank": rank, "world_size": world_size})
    alone = build_model(copy.deepcopy(opt))
    alone.net_g.load_state_dict(model.net_g.module.state_dict())
    alone.net_d.load_state_dict(model.net_d.module.state_dict())
    for iteration in (1, 2, 3):
        for one in (model, alone) if iteration == 1 else (model,):
            one.feed_data(random_batch(10 * iteration + rank))
            one.optimize_parameters(iteration)
        for net, own in ((model.net_g, alone.net_g), (model.net_d, alone.net_d)):
            parameters = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
            assert same_on_all_ranks(parameters), "the ranks' weights differ"
            if iteration == 1:
                mean = gradients(own)
                distributed.all_reduce(mean)
                torch.testing.assert_close(gradients(net), mean / world_size, rtol=1e-4, atol=1e-7)
    log = model.get_current_log()
    assert rank != 0 or log["l_g_percep"] > 0


def main(backend: str) -> None:
    with in_group():
        init_distributed("pytorch", backend=backend, cpu=backend == "gloo")
        answer = start_maximum(distributed.get_rank())
        check(backend)
        assert answer() == distributed.get_world_size() - 1
    # A thread of gloo that outlives the group can abort Python's exit: "terminate called without an active exception".
    for path in Path("/proc/self/task").glob("*/comm"):
        # Another thread may end while it is looked at.
        with contextlib.suppress(OSError):
            assert "pt_gloo" not in path.read_text()


if __name__ == "__main__":
    main(sys.argv[1])
