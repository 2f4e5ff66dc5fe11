"""Curves read from what BasicSR's MessageLogger writes."""

from __future__ import annotations

import logging
from pathlib import Path

from dp_basicsr.evaluation.curves import product, read_log

import pytest
from basicsr.utils import MessageLogger


def test_every_value_of_every_logged_iteration_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="basicsr")
    log = tmp_path / "train.log"
    handler = logging.FileHandler(log)
    opt = {"name": "a_run", "logger": {"print_freq": 500, "use_tb_logger": False}, "train": {"total_iter": 4000}}
    line = MessageLogger(opt, 1)
    line.logger.addHandler(handler)
    try:
        for iteration in (500, 1000, 12500):
            values = {"l_g_pix": iteration * 1e-6, "out_d_fake": -2.5, "dp_weight": 3.0}
            head = {"epoch": 0, "iter": iteration, "lrs": [1e-4, 2e-4], "time": 1.0, "data_time": 0.5}
            line(head | values)
        line.logger.info("Validation set # psnr: 20.0")
    finally:
        line.logger.removeHandler(handler)
    curves = read_log(log)
    assert curves.keys() == {"lr", "l_g_pix", "out_d_fake", "dp_weight"}
    assert curves["lr"] == [(500, 1e-4), (1000, 1e-4), (12500, 1e-4)]
    assert curves["l_g_pix"] == [(n, pytest.approx(n * 1e-6)) for n in (500, 1000, 12500)]
    assert product(curves["dp_weight"], curves["out_d_fake"])[0] == (500, -7.5)
