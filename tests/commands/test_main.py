"""``dp-basicsr``: every command is there, under its script's name too, and the option files are at hand."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dp_basicsr
from dp_basicsr.__main__ import main
from dp_basicsr.utils.arguments import COMMANDS, ROOT, SHIPPED, output_file

import pytest

from scripts import make_lr
from tests.support.programs import code_of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_script_are_one(name: str) -> None:
    command = COMMANDS[name]
    module, _, function = command.target.partition(":")
    function = getattr(importlib.import_module(f"dp_basicsr.{module}"), function or "main")
    if command.script and command.target.startswith("commands."):
        assert runpy.run_path(str(ROOT / command.script_path))["main"] is function


def test_scripts_are_thin() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "scripts").glob("*.py")}
    paths = [command.script_path for command in COMMANDS.values() if command.target.startswith("commands.")]
    assert all(lines.get(Path(path).name, 0) <= 6 for path in paths)
    assert sum(lines.values()) <= 800


@pytest.mark.parametrize("text", [".", "..", "/", "there", "new/"])
def test_a_folder_as_the_file_to_write_gets_a_file_in_it(text: str) -> None:
    """Of a report's the message was that it is a directory, when all was computed."""
    Path("there").mkdir()
    assert output_file("report.html")(text) == Path(text, "report.html")
    assert output_file("report.html")("there.html") == Path("there.html")


def test_torchrun_starts_what_is_not_distributed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """casanovo#140: the processes wrote the same files, and one ended the other."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    arguments = ["-i", "GT", "-o", "LR"]
    monkeypatch.setattr(sys, "argv", ["scripts/make_lr.py", *arguments])
    for program, name in ((partial(main, ["data", "lr", *arguments]), "data lr"), (make_lr.main, "")):
        with pytest.raises(SystemExit, match="0"):
            program()
        assert f"{name} works in rank 0 alone" in capsys.readouterr().err
    assert code_of(make_lr.main, arguments) == 2, "a program of one's own decides itself which rank calls"
    monkeypatch.setenv("RANK", "0")
    for name, rank in (("RANK", "0"), ("SLURM_PROCID", "0"), ("SLURM_PROCID", "1"), ("OMPI_COMM_WORLD_RANK", "1")):
        monkeypatch.setenv(name, rank)
        assert code_of(main, ["data", "lr", "-i", "GT", "-o", "LR"]) == 2  # there is no GT
        said = "data lr does all its work in each task: srun or mpirun -n 1" in capsys.readouterr().err
        assert said == (rank == "1"), "a script may give each task other arguments, so that all work"
        monkeypatch.delenv(name)


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert main(["data"]) == 0
    listed = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  data ")]
    assert listed == [name for name in COMMANDS if name.startswith("data ")]


@pytest.mark.parametrize("spelling", ["--local-rank=1", "--local_rank=1"])
def test_the_argument_of_torch_distributed_launch_may_come_first(spelling: str, refused: Callable[..., str]) -> None:
    assert "no such folder" in refused(main, [spelling, "report", "no such folder"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dp_basicsr {dp_basicsr.__version__}\n"


@pytest.mark.parametrize(("words", "near"), [("upscal x", "upscale"), ("data lrr", "data lr"), ("check", "data check")])
def test_a_wrong_name_gets_the_nearest(words: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err.endswith(f"; {near!r}?\n")


@pytest.mark.parametrize("module", ["dp_basicsr", "dp_basicsr.train"])
def test_files_of_the_current_folder_hide_no_package(module: str) -> None:
    for name in ("random.py", "copy.py", "yaml.py", "basicsr/__init__.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("raise ImportError('of the user')")
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_in_an_archive_is_one_message() -> None:
    shutil.make_archive("package", "zip", ROOT, "dp_basicsr")
    command = [sys.executable, "-c", "from dp_basicsr.__main__ import main; main(['options'])"]
    env = {**os.environ, "PYTHONPATH": "package.zip"}
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8")
    where = Path("package.zip").absolute()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: expected an installed package, got the archive {where}: pip install or unpack it\n"


def test_the_backend_of_a_notebook_s_kernel_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "not_installed")
    code = "import sys; from dp_basicsr.__main__ import main; main(['--version']); import matplotlib.figure"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_figures_without_a_home_say_nothing_of_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """immich#30288: in a container of another user."""
    for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    environment = {**os.environ, "HOME": "/proc/none", "PYTHONPATH": str(ROOT)}
    code = "from dp_basicsr.errors import exit_on_user_error as run\nwith run(): import matplotlib.font_manager"
    assert subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE).stderr == b""


def test_errors_and_exit_codes_are_the_commands(refused: Callable[..., str]) -> None:
    assert "no such folder" in refused(main, ["report", "no such folder"])
    assert "File name too long; choose a shorter path" in refused(main, ["export", "-o", f"{'n' * 256}.onnx"])


def test_option_files_are_listed_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(file.stem for file in SHIPPED.glob("*.yml"))
    assert main(["options", "finetune_dp", "-o", "mine"]) == 0
    assert {path.name for path in Path("mine").iterdir()} == {"finetune_dp.yml", "schema.json"}
    assert main(["options", "finetune_dp", "-o", "runs/my.yml"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"my.yml", "schema.json"}
    for wrong, text in (
        (["finetune_dp", "-o", "mine"], "exists"),
        (["finetune_dp", "-o", "runs/my.yml"], "exists"),
        (["finetune_dp", "train_demo", "-o", "a.yml"], "a.yml: expected a folder for 2 files"),
        (["none", "-o", "mine"], "some of finetune_dp, "),
    ):
        assert code_of(main, ["options", *wrong]) == 2
        assert text in capsys.readouterr().err
