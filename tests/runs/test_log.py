"""Progress reports: the bar on a terminal, plain lines elsewhere, wandb on request."""

from __future__ import annotations

import io
import logging
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.curves import training_logs
from dp_basicsr.options.reading import parse_yaml
from dp_basicsr.options.run import Folders, RunOptions
from dp_basicsr.options.schema import OptionFile
from dp_basicsr.runs.log import (
    IterationLog,
    progress_bar,
    require_loggers,
    start_log,
    start_wandb,
    tensorboard,
    write_log,
)

import pytest
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.options import SMALL_PSNR


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_with(name: str = "run", rank: int = 0, total: int = 10, **logger: Any) -> RunOptions:
    opt = parse_yaml(SMALL_PSNR, "options") | {"name": name, "logger": {"print_freq": 1, **logger}}
    opt["train"]["total_iter"] = total
    folders = Folders.under(Path("experiments", name).absolute())
    folders.root.mkdir(parents=True, exist_ok=True)
    return RunOptions(OptionFile.of(opt), is_train=True, num_gpu=0, manual_seed=0, folders=folders, rank=rank)


@pytest.mark.parametrize(
    ("stderr", "rank", "shown"), [(Terminal(), 0, True), (io.StringIO(), 0, False), (Terminal(), 1, False)]
)
def test_the_bar_is_shown_only_on_rank_0_of_a_terminal(
    stderr: io.StringIO, rank: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    run = run_with(rank=rank)
    with progress_bar(run, start_iter=4) as bar:
        IterationLog(run, 4, None, bar)(0, 5, [1e-4], {"time": 1.0, "data_time": 0.25, "l_g_percep": 0.123456})
        bar.update()
        bar.refresh()
    text = stderr.getvalue()
    assert all(part in text for part in ("5/10", "l_g_percep=0.123", "data=25%")) == shown


@pytest.mark.parametrize("name", ["l_percep", "l_g_pix"])
def test_a_loss_far_above_its_usual_value_is_named_when_it_gets_there(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, times = run_with(total=99), {"time": 1.0, "data_time": 0.25, "l_g_gan": 0.0}
    # A warm-up, the first steps, a bad crop, and what does not come back.
    losses = [0, 0, 3, 0.5, 0.02, 0.01, 0.02, 0.3, 0.01, 0.02, math.nan, math.inf, 0.02, 21, 1e9, 1e12]
    with progress_bar(run, 0) as bar:
        line = IterationLog(run, 0, None, bar)
        for number, loss in enumerate(losses, 1):
            line(0, number, [1e-4], times | {name: loss, "l_g_gan": 10.0**number})
            # Steps of D alone have none.
            line(0, number, [1e-4], times)
            assert caplog.text.count("diverges") == (number >= 14), (number, caplog.text)
    assert f"{name} is 1.05e+03 times its median so far: the training diverges" in caplog.text


WANDB: dict[str, Any] = {"use_tb_logger": True, "wandb": {"project": "sr", "resume_id": "abc"}}


@pytest.mark.parametrize(
    "given",
    ["abc", "me/sr/abc", "https://wandb.ai/me/sr/runs/abc/overview?nw=me", "run-20260930_101112-abc",
     "wandb/offline-run-20260930_101112-abc/"],
)  # fmt: skip
def test_wandb_gets_tensorboard_s_figures_when_asked(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb/wandb#5856: the name of the run's folder, taken for an id, began a new run."""
    calls: list[dict[str, Any]] = []
    fake = SimpleNamespace(init=lambda **arguments: calls.append(arguments) or SimpleNamespace(id="abc"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    start_wandb(run_with(**{**WANDB, "wandb": {"project": "sr", "resume_id": given}}))
    (call,) = calls
    assert (call["project"], call["id"], call["resume"], call["sync_tensorboard"]) == ("sr", "abc", "allow", True)


def test_wandb_without_a_login_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**arguments: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"cannot start \(api_key not configured.*\): run `wandb login`, or set WANDB"):
        start_wandb(run_with(**WANDB))


def test_a_folder_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """manylatents#211: wandb makes a folder ``wandb`` for its runs, which Python imports where there is no package."""
    Path("wandb").mkdir()
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb is not installed: pip install 'dp_basicsr.wandb.'"):
        require_loggers(run_with(**WANDB))


@pytest.mark.parametrize("changes", [{"rank": 1}, {"name": "debug_run"}, {"use_tb_logger": False}])
def test_other_ranks_and_debug_runs_write_no_tensorboard(changes: dict[str, Any]) -> None:
    with tensorboard(run_with(**{"use_tb_logger": True, **changes}), resuming=False) as writer:
        assert writer is None
    assert not Path("tb_logger").exists()


def test_a_run_outlives_the_folder_of_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    """polyaxon#710."""
    run = run_with(use_tb_logger=True)
    with tensorboard(run, resuming=False) as writer:
        for iteration in range(1, 5):
            writer.add_scalar("l_pix", 0.5, iteration, 1e9)  # as anyone's model may call it
            writer.add_scalar(tag="l_gan", scalar_value=0.5, global_step=iteration)
            writer.flush()
            if iteration == 2:
                shutil.rmtree(run.tensorboard)
    figures = EventAccumulator(str(run.tensorboard)).Reload().Scalars("l_pix")
    assert [figure.step for figure in figures] == [3, 4]
    assert caplog.text.count("is gone, with the figures up to now") == 1


def test_a_run_outlives_its_log_and_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """polyaxon#710; a checkpoint makes the folder anew."""
    run, logger = run_with(), get_root_logger()
    write_log(run, "train", start_log(run))
    handler = logger.handlers[-1]
    try:
        (log,) = run.folders.root.glob("train_*.log")
        log.unlink()
        logger.info("after the file was deleted")
        assert "after the file was deleted" in log.read_text()
        shutil.rmtree(run.folders.root)
        for line in ("lost", "lost too"):
            logger.info(line)
        assert capsys.readouterr().err.count("cannot be written") == 1
        run.folders.root.mkdir()
        logger.info("in a new one")
        assert "in a new one" in log.read_text()
    finally:
        logger.removeHandler(handler)
        handler.close()


def test_logs_are_in_the_order_of_their_starts_also_if_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """ccs-calendarserver#101: the end of summer time, or a container whose time zone is another."""
    run, logger = run_with(), get_root_logger()
    times = iter(["20261025_025959", "20261025_020000", "20261025_020000", "20261025_040000"])
    monkeypatch.setattr("dp_basicsr.runs.log.get_time_str", lambda: next(times))
    (run.folders.root / f"train_{run.options.name}_notes.log").touch()
    for start in range(4):
        write_log(run, "train", start_log(run))
        logger.info(f"start {start}")
        logger.removeHandler(logger.handlers[-1])
    logs = [log.read_text() for log in training_logs(run.folders.root) if "notes" not in log.name]
    assert [text.rpartition("start ")[2].strip() for text in logs] == list("0123")


FIGURES = {"time": 0.61234, "data_time": 0.01, "img_per_s": 26.1, "l_g_pix": 0.00104, "l_g_vgg": 0.0215,
           "l_g_resnet": 2.17, "dp_weight": 0.01977, "l_g_percep": 0.0643, "l_g_gan": 0.0123, "l_d_real": 0.0451,
           "l_d_fake": 0.0445, "out_d_real": 1.14, "out_d_fake": -1.233}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_of_a_terminal_fit_it_and_the_log_file_has_all(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, iteration, ETA and figures of three digits; networks and options are in the log file only."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    get_root_logger()
    monkeypatch.setattr(logging.getLogger("basicsr"), "handlers", [logging.StreamHandler(terminal)])
    run = run_with(name="ESRGAN_DP_x4_DIV2K", total=400_000, use_tb_logger=False)
    held = start_log(run)
    BaseModel(run.as_dict()).print_network(RRDBNetDP(num_block=2))
    with progress_bar(replace(run, rank=1), 1100) as hidden:
        IterationLog(run, 1100, None, hidden)(3, 1200, [1e-4], FIGURES)
    write_log(run, "train", held)
    shown, file = terminal.getvalue(), next(run.folders.root.glob("train_*.log")).read_text()
    assert len(shown.splitlines()) <= {80: 10, 120: 8}[columns]
    assert [line for line in shown.splitlines() if len(line) > columns] == []
    text = " ".join(shown.replace("\u00a0", " ").split())
    for part in ("Network: RRDBNetDP, with parameters:", "ESRGAN_DP_x4_DIV2K: 1,200/400,000 | ETA ", "l_d_fake 0.0445"):
        assert part in text
    assert "Luck" not in file
    for part in ("(conv_first): Conv2d", "total_iter: 400000", "iter:   1,200, lr:(1.000e-04,)", "l_g_gan: 1.2300e-02"):
        assert part in file
        assert part not in text
