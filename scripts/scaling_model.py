"""Model the cost of a run on 1 to 64 GPUs and print the tables of docs/scaling.md. Nothing is trained.

Operations are counted on the networks of the option file; rates of GPUs, networks and disks are assumptions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dp_basicsr.options import read_options

if TYPE_CHECKING:
    from dp_basicsr.training.cost import Cost

ROOT = Path(__file__).resolve().parents[1]
GPUS = (1, 2, 4, 8, 16, 32, 64)

ITERATIONS = 400_000  # paper
PAPER_BATCH = 16  # paper
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
class Machines:
    """Assumptions about the hardware.

    Attributes:
        flop_rate: Sustained operations per second of a GPU.
        network: Bytes per second between two nodes.
        inside: Bytes per second between the GPUs of a node.
        gpus_a_node: GPUs per node.
        latency: Seconds per message.
        launch: Seconds to launch an operation on the GPU.
        disk: Bytes per second that the data's storage delivers to all nodes together.
    """

    flop_rate: float
    network: float
    inside: float = 50e9
    gpus_a_node: int = 8
    latency: float = 20e-6
    launch: float = 5e-6
    disk: float = 1e9


def all_reduce_seconds(size: float, gpus: int, rate: float, latency: float) -> float:
    """Return the seconds of a ring all-reduce: 2 (P - 1) / P of the data in 2 (P - 1) messages per bucket."""
    buckets = math.ceil(size / BUCKET_BYTES)
    return 2 * (gpus - 1) * (size / gpus / rate + buckets * latency)


def step_parts(cost: Cost, machines: Machines, gpus: int, pairs: float) -> dict[str, float]:
    """Return the seconds of each part of a step.

    ``compute``, ``launch`` and ``disk`` overlap; ``network`` is added, because how much of it the backward pass hides
    depends on the machine.

    Args:
        cost: Cost of the step.
        machines: Assumptions about the hardware.
        gpus: Number of GPUs.
        pairs: Mini-batch of all GPUs together.
    """
    rate = machines.inside if gpus <= machines.gpus_a_node else machines.network
    return {
        "compute": cost.flop * pairs / gpus / machines.flop_rate,
        "launch": cost.operations * machines.launch,
        "disk": pairs * PNG_BYTES / machines.disk,
        "network": all_reduce_seconds(cost.gradient_bytes, gpus, rate, machines.latency),
    }


def step_seconds(parts: dict[str, float]) -> float:
    """Return the seconds of a step whose network time is not hidden at all."""
    return max(parts["compute"], parts["launch"], parts["disk"]) + parts["network"]


def run_hours(seconds: float, iterations: int = ITERATIONS) -> float:
    """Return the hours of a run from the seconds of a step."""
    return iterations * seconds / 3600


def bound_by(parts: dict[str, float]) -> str:
    """Return the part that takes most of a step."""
    return max(parts, key=lambda name: parts[name])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def cost_tables(cost: Cost) -> str:
    """Format tables of the operations per pair and of the bytes per step."""
    networks = (("G", cost.generator, 3), ("D", cost.discriminator, 7), ("VGG and ResNet", cost.perceptual, 3))
    rows = [(name, f"{one / 1e9:.1f}", times, f"{times * one / 1e9:.1f}") for name, one, times in networks]
    operations = table(
        ("network", "GFLOP, one forward pass", "times", "GFLOP of a step"),
        [*rows, ("all", "", "", f"**{cost.flop / 1e9:.1f}**")],
    )
    sizes = (
        (f"gradients of a step: {cost.parameters_g:,} + {cost.parameters_d:,} weights", cost.gradient_bytes),
        ("a checkpoint: networks and two moments of each weight", cost.checkpoint_bytes),
        (f"samples of a mini-batch of {PAPER_BATCH}, PNG records (about)", PAPER_BATCH * PNG_BYTES),
        (f"samples of a mini-batch of {PAPER_BATCH}, raw records", PAPER_BATCH * RAW_BYTES),
        (f"pages that {PAPER_BATCH} crops touch of raw records", PAPER_BATCH * CROP_BYTES),
    )
    calls = f"A step launches {cost.operations:,} operations on the device, whatever the mini-batch."
    megabytes = table(("what", "MB"), [(what, f"{size / 1e6:.1f}") for what, size in sizes])
    return f"{operations}\n\n{calls}\n\n{megabytes}"


def run_table(cost: Cost, machines: Machines) -> str:
    """Format the hours of a run by number of GPUs, with the paper's total mini-batch and with as many pairs per GPU."""
    rows = []
    for gpus in GPUS:
        row: list[object] = [gpus]
        for pairs in (PAPER_BATCH, PAPER_BATCH * gpus):
            if pairs < gpus:
                row += ["n/a", "fewer pairs than GPUs"]
                continue
            parts = step_parts(cost, machines, gpus, pairs)
            row += [f"{run_hours(step_seconds(parts)):.1f}", bound_by(parts)]
        rows.append(row)
    head = ("GPUs", f"hours, {PAPER_BATCH} pairs in all", "most in", f"hours, {PAPER_BATCH} pairs a GPU", "most in")
    return table(head, rows)


def feed_table(cost: Cost, rates: Sequence[float]) -> str:
    """Format what storage and CPU cores must deliver so that a GPU never waits."""
    rows = []
    for rate in rates:
        pairs = rate / cost.flop
        rows.append(
            (f"{rate / 1e12:g} TFLOP/s", f"{pairs:.0f}", f"{pairs * PNG_BYTES / 1e6:.0f}", f"{pairs * PNG_SECONDS:.1f}",
             f"{pairs * CROP_BYTES / 1e6:.0f}", f"{Machines(rate, 1).disk / (pairs * PNG_BYTES):.0f}")
        )  # fmt: skip
    return table(
        ("GPU", "pairs/s", "PNG records, MB/s", "CPU cores that decode", "raw crops, MB/s", "GPUs that 1 GB/s feeds"),
        rows,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tflops", type=float, nargs="+", default=[10, 50], help="sustained TFLOP/s of a GPU")
    parser.add_argument("--gbits", type=float, nargs="+", default=[10, 100], help="network between nodes, Gbit/s")
    args = parser.parse_args(argv)
    if not all(rate > 0 for rate in (*args.tflops, *args.gbits)):
        parser.error("expected --tflops and --gbits above 0")
    import dp_basicsr.archs
    import dp_basicsr.losses
    import dp_basicsr.models  # noqa: F401  (the three register their members)
    from dp_basicsr.training.cost import count_cost

    from basicsr.models import build_model

    opt = read_options(ROOT / "options/train_esrgan_dp.yml")
    opt |= {"num_gpu": 0, "is_train": True, "dist": False, "rank": 0, "world_size": 1}
    opt["train"]["perceptual_opt"] |= {"vgg_weights": "random", "resnet_weights": "random"}  # the same operations
    cost = count_cost(build_model(opt))
    print(cost_tables(cost))
    print(f"\n{feed_table(cost, [rate * 1e12 for rate in args.tflops])}")
    for rate in args.tflops:
        for network in args.gbits:
            print(f"\nGPUs of {rate:g} TFLOP/s, {network:g} Gbit/s between nodes of 8 (a model, not a run):\n")
            print(run_table(cost, Machines(rate * 1e12, network / 8 * 1e9)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
