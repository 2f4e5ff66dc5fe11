"""Model the cost of a run on 1 to 64 GPUs and print the tables of docs/scaling.md. Nothing is trained.

Operations are counted on the networks of the option file; rates of GPUs, networks and disks are assumptions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import markdown
from benchmarks.operations import counted
from benchmarks.step import OURS, model_of, step_of

GPUS = (1, 2, 4, 8, 16, 32, 64)

ITERATIONS, PAPER_BATCH = 400_000, 16  # of the paper
BUCKET_BYTES = 25 * 2**20  # size of DistributedDataParallel's gradient buckets by default

# A sample of the paper's data: a sub-image of 480 x 480 and its LR of 120 x 120, 3 bytes per pixel.
RAW_BYTES = 3 * (480**2 + 120**2)
# DIV2K's 800 training images, about 2.8 million pixels each, are a download of 3.5 GB (datasets/README.md).
PNG_BYTES = round(RAW_BYTES * 3.5e9 / (800 * 2.8e6 * 3))
# Pages of 4 KiB of a raw record that a crop touches: 128 lines of 1440 bytes and 32 of 360 are contiguous.
CROP_BYTES = 4096 * (math.ceil(128 * 1440 / 4096) + 1 + math.ceil(32 * 360 / 4096) + 1)
# CPU seconds of one sample of BasicSR's PairedImageDataset from an LMDB of PNG records, measured on one core of a
# 2-core x86 machine with 46 sub-images of scikit-image's photographs.
PNG_SECONDS = 6.3e-3


@dataclass(frozen=True)
class Cost:
    """Cost of one training step."""

    flop: float  # floating point operations per pair, two per multiply-add
    operations: int  # kernel launches, independent of the mini-batch
    weights: int  # of G and D, whose gradients every step averages over the processes, in float32


@dataclass(frozen=True)
class Machines:
    """Assumptions about the hardware; rates are per second, sizes in bytes."""

    flop_rate: float  # sustained operations of a GPU
    network: float  # between two nodes
    inside: float = 50e9  # between the GPUs of a node
    gpus_a_node: int = 8
    latency: float = 20e-6  # of a message
    launch: float = 5e-6  # of an operation on the GPU
    disk: float = 1e9  # the data's storage, to all nodes together


def count_cost(model: Any) -> Cost:
    """Count a step of an x4 model on pairs of 128 x 128 HR pixels; D's batch-norm needs two of them."""
    step = step_of(model, 2)
    step()  # Adam creates its moments
    counter = counted(step)
    weights = sum(weight.numel() for net in (model.net_g, model.net_d) for weight in net.parameters())
    return Cost(counter.flop / 2, counter.calls, weights)


def all_reduce_seconds(size: float, gpus: int, rate: float, latency: float) -> float:
    """Return the seconds of a ring all-reduce: 2 (P - 1) / P of the data in 2 (P - 1) messages per bucket."""
    return 2 * (gpus - 1) * (size / gpus / rate + math.ceil(size / BUCKET_BYTES) * latency)


def step_parts(cost: Cost, machines: Machines, gpus: int, pairs: float) -> dict[str, float]:
    """Return the seconds of each part of a step with a mini-batch of ``pairs`` on all GPUs together."""
    rate = machines.inside if gpus <= machines.gpus_a_node else machines.network
    return {
        "compute": cost.flop * pairs / gpus / machines.flop_rate,
        "launch": cost.operations * machines.launch,
        "disk": pairs * PNG_BYTES / machines.disk,
        "network": all_reduce_seconds(4 * cost.weights, gpus, rate, machines.latency),
    }


def run_hours(parts: dict[str, float], iterations: int = ITERATIONS) -> float:
    """Return the hours of a run. The network's time is added: how much the backward pass hides is unknown."""
    return iterations * (max(parts["compute"], parts["launch"], parts["disk"]) + parts["network"]) / 3600


def run_table(cost: Cost, machines: Machines) -> str:
    """Format the hours of a run by number of GPUs, with the paper's total mini-batch and with as many pairs per GPU."""
    rows = []
    for gpus in GPUS:
        row: list[object] = [gpus]
        for pairs in (PAPER_BATCH, PAPER_BATCH * gpus):
            parts = step_parts(cost, machines, gpus, pairs)
            longest = max(parts, key=lambda name: parts[name])
            row += [f"{run_hours(parts):.1f}", longest] if pairs >= gpus else ["n/a", "fewer pairs than GPUs"]
        rows.append(row)
    head = ("GPUs", f"hours, {PAPER_BATCH} pairs in all", "most in", f"hours, {PAPER_BATCH} pairs a GPU", "most in")
    return markdown(head, rows)


def cost_tables(cost: Cost, rates: Sequence[float]) -> str:
    """Format the bytes of a step, and what storage and CPU cores must deliver so that a GPU of a rate never waits."""
    sizes = {
        f"gradients of a step: {cost.weights:,} weights": 4 * cost.weights,
        "a checkpoint: networks and two moments of each weight": 12 * cost.weights,
        f"samples of a mini-batch of {PAPER_BATCH}, PNG records (about)": PAPER_BATCH * PNG_BYTES,
        f"samples of a mini-batch of {PAPER_BATCH}, raw records": PAPER_BATCH * RAW_BYTES,
        f"pages that {PAPER_BATCH} crops touch of raw records": PAPER_BATCH * CROP_BYTES,
    }
    rows = []
    for rate in rates:
        pairs = rate / cost.flop
        png = pairs * PNG_BYTES
        numbers = pairs, png / 1e6, pairs * CROP_BYTES / 1e6, Machines(rate, 1).disk / png
        speed, records, crops, fed = (f"{number:.0f}" for number in numbers)
        rows.append((f"{rate / 1e12:g} TFLOP/s", speed, records, f"{pairs * PNG_SECONDS:.1f}", crops, fed))
    head = "GPU", "pairs/s", "PNG records, MB/s", "CPU cores that decode", "raw crops, MB/s", "GPUs that 1 GB/s feeds"
    table = markdown(("what", "MB"), [(what, f"{size / 1e6:.1f}") for what, size in sizes.items()])
    return f"{table}\n\n{markdown(head, rows)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tflops", type=float, nargs="+", default=[10, 50], help="sustained TFLOP/s of a GPU")
    parser.add_argument("--gbits", type=float, nargs="+", default=[10, 100], help="network between nodes, Gbit/s")
    args = parser.parse_args(argv)
    if not all(rate > 0 for rate in (*args.tflops, *args.gbits)):
        parser.error("expected --tflops and --gbits above 0")
    cost = count_cost(model_of(OURS, False))
    print(f"A step takes {cost.flop / 1e9:.1f} GFLOP per pair in {cost.operations:,} operations.\n")
    print(cost_tables(cost, [rate * 1e12 for rate in args.tflops]))
    for rate in args.tflops:
        for network in args.gbits:
            print(f"\nGPUs of {rate:g} TFLOP/s, {network:g} Gbit/s between nodes of 8 (a model, not a run):\n")
            print(run_table(cost, Machines(rate * 1e12, network / 8 * 1e9)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
