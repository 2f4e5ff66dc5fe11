"""Time the training step on 1, 2 and 4 processes of this machine with the same total mini-batch.

Prints the seconds and CPU seconds (of all processes together) of a step, the seconds of the gradients' all-reduce, the
prediction of the model in docs/scaling.md, and the throughput relative to the first line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence

from dp_basicsr.distributed.launch import in_group, init_distributed

import torch
from basicsr.models import build_model
from torch import distributed

from benchmarks.measure import markdown, run
from benchmarks.step import options, step_of

# (processes, threads of each)
CASES = ((1, 2), (2, 1), (1, 1), (4, 1))


def work(args: argparse.Namespace) -> None:
    """Run one of the processes: train on random pairs; rank 0 prints the times of a step."""
    opt = options(False) | {"num_gpu": 0, "dist": init_distributed("pytorch", cpu=True)}
    opt["network_g"]["num_block"] = args.blocks
    opt["rank"], opt["world_size"] = distributed.get_rank(), distributed.get_world_size()
    model = build_model(opt)
    step = step_of(model, args.batch // opt["world_size"])
    step()
    distributed.barrier()
    start = torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
    for _ in range(args.steps):
        step()
    spent = (torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64) - start) / args.steps
    distributed.all_reduce(spent)
    gradients = torch.zeros(sum(weight.numel() for net in (model.net_g, model.net_d) for weight in net.parameters()))
    before = time.perf_counter()
    for _ in range(args.steps):
        distributed.all_reduce(gradients)
    taken = (time.perf_counter() - before) / args.steps if opt["world_size"] > 1 else 0.0
    if opt["rank"] == 0:
        print(json.dumps([spent[0].item() / opt["world_size"], spent[1].item(), taken]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="mini-batch of all processes together")
    parser.add_argument("--blocks", type=int, default=23, help="RRDBs of the generator; the paper has 23")
    parser.add_argument("--steps", type=int, default=3, help="steps per start, after one warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each process group")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        with in_group():
            work(args)
        return 0
    sizes = [f"--batch={args.batch}", f"--blocks={args.blocks}", f"--steps={args.steps}"]
    taken: dict[tuple[int, int], list[list[float]]] = {case: [] for case in CASES}
    for _ in range(args.rounds):
        for (processes, threads), results in taken.items():
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            worker = ["-m", "benchmarks.measure_parallel", "--worker", *sizes]
            results.append(json.loads(run([*torchrun, *worker], OMP_NUM_THREADS=str(threads)).splitlines()[-1]))
    medians = {case: [statistics.median(values) for values in zip(*taken[case], strict=True)] for case in CASES}
    rows = []
    for (processes, threads), (seconds, cpu, all_reduce) in medians.items():
        modelled = medians[1, 1][1] / min(processes * threads, os.cpu_count() or 1) + all_reduce
        ratios = [first[0] / mine[0] for first, mine in zip(taken[CASES[0]], taken[processes, threads], strict=True)]
        throughput = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        columns = (f"{value:.2f}" for value in (seconds, cpu, all_reduce, modelled))
        rows.append((f"{processes} x {threads}", *columns, throughput))
    head = "processes x threads", "seconds", "CPU seconds", "all-reduce, seconds", "by the model, seconds", "throughput"
    print(f"{' '.join(sizes)}, {args.rounds} rounds; median (spread)\n\n{markdown(head, rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
