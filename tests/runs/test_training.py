"""The folders of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from dp_basicsr.options.reading import parse_yaml
from dp_basicsr.options.run import Folders, RunOptions
from dp_basicsr.options.schema import OptionFile
from dp_basicsr.runs.training import make_folders
from dp_basicsr.utils.atomic_io import await_archive_name

import pytest
import yaml

from tests.support.options import SMALL_PSNR


@pytest.mark.parametrize("resuming", [False, True])
def test_a_run_may_start_from_its_own_copy_of_the_options(resuming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "a=1\nb: 2"])
    options = OptionFile.of(parse_yaml(SMALL_PSNR, "options"))
    root = Path("experiments", "run")
    root.mkdir(parents=True)
    (root / "small.yml").write_text("# 训练\nname: run\n", encoding="utf-8")
    run = RunOptions(options, is_train=True, num_gpu=0, manual_seed=0, folders=Folders.under(root))
    make_folders(run, str(root / "small.yml"), resuming)
    text = (root / "small.yml").read_text(encoding="utf-8")
    assert text.endswith("# 训练\nname: run\n")
    assert "# train.py a=1\\nb: 2\n" in text
    assert yaml.safe_load(text) == {"name": "run"}
    assert len(list(Path("experiments").glob("run_archived_*"))) == (0 if resuming else 1)


def test_an_archive_name_that_is_taken_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """metatrain#446: two runs of one name within a second."""
    seconds = iter(["1", "1", "2", "3"])
    monkeypatch.setattr("time.strftime", lambda _: next(seconds))
    Path("run_archived_1").mkdir()
    await_archive_name("run")
    assert next(seconds) == "3"
