"""Curves read from what BasicSR's MessageLogger writes."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.curves import panel_svg, plot_panels, read_run, training_panels

import pytest
from basicsr.utils import MessageLogger


def test_every_value_of_every_logged_iteration_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="basicsr")
    log = tmp_path / "train_run.log"
    handler = logging.FileHandler(log)
    opt = {"name": "a_run", "logger": {"print_freq": 500, "use_tb_logger": False}, "train": {"total_iter": 4000}}
    line = MessageLogger(opt, 1)
    line.logger.addHandler(handler)
    try:
        for iteration in (500, 1000, 12500):
            values = {"l_g_pix": iteration * 1e-6, "out_d_fake": -2.5, "dp_weight": 3.0, "l_g_low-freq.": 1.0}
            head = {"epoch": 0, "iter": iteration, "lrs": [1e-4, 2e-4], "time": 1.0, "data_time": 0.5}
            line(head | values)
        line.logger.info("Validation set # psnr: 20.0")
        line.logger.info("Validation set\n\t # PSNR-Y (x4): 20.0000\tBest: 25.0000 @ 500 iter\n\t # NIQE: 4.5000\n")
    finally:
        line.logger.removeHandler(handler)
    curves = read_run(tmp_path)
    names = {"lr", "l_g_pix", "out_d_fake", "dp_weight", "l_g_low-freq.", "set/PSNR-Y (x4)", "set/NIQE"}
    assert curves.keys() == names
    assert curves["set/PSNR-Y (x4)"] == [(12500, 20.0)]
    assert curves["lr"] == [(500, 1e-4), (1000, 1e-4), (12500, 1e-4)]
    assert curves["l_g_pix"] == [(n, pytest.approx(n * 1e-6)) for n in (500, 1000, 12500)]
    assert curves["out_d_fake"][0] == (500, -2.5)


def write_log(path: Path, iterations: range, rate: float) -> None:
    """A log of a run with a validation after every second iteration."""
    lines = []
    for iteration in iterations:
        head = f"INFO: [run..][epoch:  0, iter:{iteration:8,d}, lr:({rate:.3e},)] [eta: 0:00:01] "
        lines.append(f"{head}l_g_vgg: 2.0e-01 l_g_resnet: 1.0e-01 dp_weight: 4.0e+00 l_d_real: 7.0e-01 ")
        if iteration % 2 == 0:
            best = f"Best: {iteration:.4f} @ {iteration} iter"
            lines += ["INFO: Validation held out", f"\t # psnr_y: {iteration:.4f}\t{best}",
                      f"\t # ssim_y: 0.5000\t{best}", ""]  # fmt: skip
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("first", "second", "resumed", "expected"),
    [
        # For repeated iterations the second log counts.
        (range(1, 6), range(5, 9), None, range(1, 9)),
        # Iterations 11 to 30 are abandoned at the resume from 10, and the new run logs only every fifth iteration.
        (range(1, 31), range(15, 21, 5), 10, [*range(1, 11), 15, 20]),
    ],
)
def test_a_resumed_run_is_one_curve(
    first: range, second: range, resumed: int | None, expected: Sequence[int], tmp_path: Path
) -> None:
    logs = [tmp_path / "train_run_1.log", tmp_path / "train_run_2.log"]
    write_log(logs[0], first, 1e-4)
    write_log(logs[1], second, 5e-5)
    if resumed:
        logs[1].write_text(f"INFO: Start training from epoch: 0, iter: {resumed}\n{logs[1].read_text()}")
    os.utime(logs[1], (1, 1))  # of a copy, whose times say nothing (huggingface/transformers#26961)
    curves = read_run(tmp_path)
    assert curves["lr"] == [(number, 5e-5 if number in second else 1e-4) for number in expected]
    assert curves["held out/psnr_y"] == [(number, float(number)) for number in expected if number % 2 == 0]


def test_a_validation_between_two_lines_is_of_its_iteration(tmp_path: Path) -> None:
    """With print_freq above val_freq, one that was not the best took the place of the best."""
    lines = ["INFO: Start training from epoch: 0, iter: 0"]
    for iteration, value in ((2, 20.0), (4, 25.0), (6, 24.0)):
        best = f"Best: {min(value + 1, 25):.4f} @ {min(iteration, 4)} iter"
        lines += [f"INFO: Validating, iter: {iteration}", "INFO: Validation set", f"\t # psnr: {value:.4f}\t{best}"]
    (tmp_path / "train_run.log").write_text("\n".join(lines))
    assert read_run(tmp_path)["set/psnr"] == [(2, 20.0), (4, 25.0), (6, 24.0)]


def test_panels_show_each_thing_that_was_logged(tmp_path: Path) -> None:
    write_log(tmp_path / "train_run_1.log", range(1, 6), 1e-4)
    panels = training_panels(read_run(tmp_path))
    assert list(panels) == [
        "L_VGG against w * L_Res", "Dynamic weight w", "Discriminator", "Learning rate",
        "Validation: psnr_y", "Validation: ssim_y",
    ]  # fmt: skip
    both = panels["L_VGG against w * L_Res"]
    assert both["dp_weight * l_g_resnet"][0] == (1, pytest.approx(0.4))
    plot_panels({"w": panels["Dynamic weight w"]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_figures_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    """chainerui#16: one NaN made all curves unreadable."""
    write_log(tmp_path / "train_run_1.log", range(1, 6), 1e-4)
    log = (tmp_path / "train_run_1.log").read_text()
    (tmp_path / "train_run_1.log").write_text(re.sub(r"(dp_weight: )\S+", r"\1nan", log))
    for title, panel in training_panels(read_run(tmp_path)).items():
        assert not re.search("nan|NaN|inf", re.sub("<defs>.*?</defs>", "", panel_svg(title, panel), flags=re.DOTALL))


def test_a_panel_tells_how_many_figures_are_not_finite() -> None:
    """A sibling of mmagic#490: where all images are restored perfectly, PSNR is infinite, and its panel was empty."""
    svg = panel_svg("Validation: psnr_y", {"set": [(1, 30), (2, math.inf), (3, 31)], "other": [(1, math.inf)]})
    assert ">set (1 of 3 not finite)<" in svg
    assert ">other (1 of 1 not finite)<" in svg
    assert "10^" not in svg, "one infinite value makes no logarithmic axis"


def test_a_panel_uses_the_colour_of_its_page() -> None:
    svg = panel_svg("Learning rate", {"lr": [(1, 1e-4), (2, 5e-5)]})
    assert svg.startswith("<svg")
    assert set(re.findall("currentColor|Learning rate|#010203", svg)) == {"currentColor", "Learning rate"}


def test_many_lines_can_be_told_apart() -> None:
    """deepTools#80: the colours come again after ten."""
    svg = panel_svg("Balance", {f"weight_{number}": [(step, number) for step in range(30)] for number in range(24)})
    styles = re.findall('style="(fill: none; stroke.*?)"', svg[svg.index('id="legend_1"') :])
    assert len(set(styles)) == len(styles) == 24


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_\*.log"):
        read_run(tmp_path)
