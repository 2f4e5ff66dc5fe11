"""The cost model of a run: its formulas compared with a real step, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dp_basicsr.models import ESRGANDPModel

import pytest

from benchmarks.operations import counted
from benchmarks.scaling_model import (
    GPUS,
    PAPER_BATCH,
    Cost,
    Machines,
    all_reduce_seconds,
    cost_tables,
    count_cost,
    main,
    run_hours,
    run_table,
    step_parts,
)
from tests.support.options import VGG_STYLE_D, model_options, random_batch

# Of the paper's networks, as the script counts them.
PAPER = Cost(185.8e9, 3521, 16_697_987 + 14_499_401)
FAST = Machines(50e12, 12.5e9)


def test_the_cost_is_what_a_step_does(tmp_path: Path) -> None:
    """3 G + 7 D + 3 perceptual forward passes, within the first layers, whose input needs no gradient."""
    model = ESRGANDPModel(model_options("ESRGANDPModel", tmp_path) | {"network_d": dict(VGG_STYLE_D)})
    cost = count_cost(model)
    batch = random_batch(0, size=128)
    lq, gt = batch["lq"], batch["gt"]
    g, d = counted(lambda: model.net_g(lq)).flop, counted(lambda: model.net_d(gt)).flop
    perceptual = counted(lambda: model.cri_perceptual(gt, gt)).flop / 2
    assert cost.flop * len(gt) == pytest.approx(3 * g + 7 * d + 3 * perceptual, rel=0.05)
    assert cost.weights == sum(weight.numel() for net in (model.net_g, model.net_d) for weight in net.parameters())


def test_a_ring_s_traffic() -> None:
    """Nothing for one process; for many, twice the data and unbounded messages."""
    assert all_reduce_seconds(1e9, 1, 1e9, 1e-3) == 0
    assert all_reduce_seconds(1e9, 2, 1e9, 0) == pytest.approx(1)
    assert all_reduce_seconds(1e9, 1000, 1e9, 0) == pytest.approx(2, rel=0.01)
    assert all_reduce_seconds(1, 65, 1e9, 1e-3) == pytest.approx(0.128)


def test_more_gpus_compute_less_and_communicate_more() -> None:
    parts = [step_parts(PAPER, FAST, gpus, PAPER_BATCH * gpus) for gpus in GPUS]
    assert len({part["compute"] for part in parts}) == 1
    assert [part["disk"] for part in parts] == sorted(part["disk"] for part in parts)
    assert [part["network"] for part in parts] == sorted(part["network"] for part in parts)
    fixed = [step_parts(PAPER, FAST, gpus, PAPER_BATCH)["compute"] for gpus in GPUS]
    assert fixed == sorted(fixed, reverse=True)


@pytest.mark.parametrize(
    ("part", "machines", "gpus"),
    [
        ("compute", Machines(1e12, 12.5e9), 1),
        ("network", Machines(50e12, 0.1e9), 16),
        ("disk", Machines(50e12, 12.5e9, disk=1e6), 1),
        ("launch", Machines(1e18, 1e18), 1),
    ],
)
def test_what_a_step_is_bound_by(part: str, machines: Machines, gpus: int) -> None:
    parts = step_parts(PAPER, machines, gpus, PAPER_BATCH)
    assert parts[part] == max(parts.values())


def test_hours() -> None:
    parts = {"compute": 0.5, "launch": 0.9, "disk": 0.1, "network": 0.1}
    assert run_hours(parts, iterations=3600) == pytest.approx(1)


def test_tables_are_markdown() -> None:
    for text in (cost_tables(PAPER, [1e13]), run_table(PAPER, FAST)):
        for block in text.split("\n\n"):
            widths = {line.count("|") for line in block.splitlines()}
            assert len(widths) == 1
    assert "| 64 | n/a | fewer pairs than GPUs |" in run_table(PAPER, FAST)


@pytest.mark.parametrize("rate", ["--tflops=0", "--gbits=nan"])
def test_a_rate_of_nothing_is_refused(rate: str, refused: Callable[..., str]) -> None:
    assert "error: expected --tflops and --gbits above 0" in refused(main, [rate])
