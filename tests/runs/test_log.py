"""Progress reports: the bar on a terminal, plain lines elsewhere, wandb on request."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.errors import UserError
from dp_basicsr.runs import log as progress
from dp_basicsr.runs.log import IterationLog, open_tensorboard, progress_bar, require_loggers, show_losses

import pytest
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def options(tmp_path: Path, rank: int = 0, **logger: Any) -> dict[str, Any]:
    return {"name": "run", "rank": rank, "train": {"total_iter": 10}, "logger": logger, "root_path": str(tmp_path)}


@pytest.mark.parametrize(("terminal", "rank", "shown"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_the_bar_is_shown_only_on_rank_0_of_a_terminal(
    terminal: bool, rank: int, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(options(tmp_path, rank), start_iter=4) as bar:
        show_losses(bar, {"l_g_percep": 0.123456, "l_d_real": 0.5}, waiting=0.25)
        bar.update()
        bar.refresh()
    text = stderr.getvalue()
    assert all(part in text for part in ("5/10", "l_g_percep=0.123", "data=25%")) == shown


def test_wandb_gets_tensorboard_s_figures_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    fake = SimpleNamespace(init=lambda **arguments: calls.append(arguments) or SimpleNamespace(id="abc"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    wandb = {"project": "sr", "resume_id": "abc"}
    writer = open_tensorboard(options(tmp_path, use_tb_logger=True, wandb=wandb), resuming=False)
    writer.close()
    assert calls[0]["project"] == "sr"
    assert calls[0]["sync_tensorboard"]
    assert (calls[0]["id"], calls[0]["resume"]) == ("abc", "allow")


def test_wandb_without_tensorboard_or_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed: pip install"):
        require_loggers(options(tmp_path, use_tb_logger=True, wandb={"project": "sr"}))
    with pytest.raises(UserError, match="use_tb_logger: true"):
        require_loggers(options(tmp_path, use_tb_logger=False, wandb={"project": "sr"}))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        require_loggers(options(tmp_path, use_tb_logger=True))
    require_loggers(options(tmp_path, use_tb_logger=False))


def test_wandb_without_a_login_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**arguments: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"cannot start \(api_key not configured.*\): run `wandb login`, or set WANDB"):
        open_tensorboard(options(tmp_path, use_tb_logger=True, wandb={"project": "sr"}), resuming=False)


def test_other_ranks_and_debug_runs_write_no_tensorboard(tmp_path: Path) -> None:
    assert open_tensorboard(options(tmp_path, rank=1, use_tb_logger=True), resuming=False) is None
    debug = options(tmp_path, use_tb_logger=True) | {"name": "debug_run"}
    assert progress.open_tensorboard(debug, resuming=False) is None
    assert not (tmp_path / "tb_logger").exists()


FIGURES = {"time": 0.61234, "data_time": 0.01, "img_per_s": 26.1, "l_g_pix": 0.00104, "l_g_vgg": 0.0215,
           "l_g_resnet": 2.17, "dp_weight": 0.01977, "l_g_percep": 0.0643, "l_g_gan": 0.0123, "l_d_real": 0.0451,
           "l_d_fake": 0.0445, "out_d_real": 1.14, "out_d_fake": -1.233}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_of_a_terminal_fit_it_and_the_log_file_has_all(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, iteration, ETA and figures of three digits; networks and options are in the log file only."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    get_root_logger()
    monkeypatch.setattr(logging.getLogger("basicsr"), "handlers", [logging.StreamHandler(terminal)])
    opt = options(tmp_path, use_tb_logger=False, print_freq=1) | {"name": "ESRGAN_DP_x4_DIV2K", "path": {}}
    opt["train"]["total_iter"], opt["path"]["log"] = 400_000, str(tmp_path)
    held = progress.start_log(opt)
    BaseModel(opt | {"num_gpu": 0, "is_train": True}).print_network(RRDBNetDP(num_block=2))
    IterationLog(opt, 1100, None)(3, 1200, [1e-4], FIGURES)
    progress.write_log(opt, "train", held)
    shown, file = terminal.getvalue(), next(tmp_path.glob("train_*.log")).read_text()
    assert len(shown.splitlines()) <= {80: 10, 120: 8}[columns]
    assert [line for line in shown.splitlines() if len(line) > columns] == []
    text = " ".join(shown.replace("\u00a0", " ").split())
    for part in ("Network: RRDBNetDP, with parameters:", "ESRGAN_DP_x4_DIV2K: 1,200/400,000 | ETA ", "l_d_fake 0.0445"):
        assert part in text
    assert "Luck" not in file
    for part in ("(conv_first): Conv2d", "total_iter: 400000", "iter:   1,200, lr:(1.000e-04,)", "l_g_gan: 1.2300e-02"):
        assert part in file
        assert part not in text
