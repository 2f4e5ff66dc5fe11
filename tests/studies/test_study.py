"""The studies: their declarations, skipped, resumed and refused runs, and their tables."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr import test, train
from dp_basicsr.evaluation.evaluate import Evaluation, Measured
from dp_basicsr.evaluation.files import write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC
from dp_basicsr.options import override, read_options
from dp_basicsr.studies import runner
from dp_basicsr.studies.results import rank_lines, study_csv, study_markdown, write_study
from dp_basicsr.studies.runner import Runner, make_jobs
from dp_basicsr.studies.study import NAMES, paper_tables, read_smoke, read_study
from dp_basicsr.utils.arguments import ROOT

import pytest
import torch
import yaml

from scripts.run_study import main

Refused = Callable[[Any, list[str]], str]
METRICS = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("terms", "small")])  # not in the paper
def test_every_row_and_column_has_the_paper_s_numbers(name: str) -> None:
    study = read_study(name)
    table = paper_tables()[study.table]
    assert list(dict.fromkeys(row.label for row in study.rows)) == list(table.rows)
    columns = study.sets if study.columns == "sets" else tuple(study.bases)
    for values in table.rows.values():
        assert tuple(values) == columns
        assert all(len(cell) == len(table.metrics) for cell in values.values())


def test_paper_s_numbers_agree_where_its_tables_share_a_setting() -> None:
    """Guards the data file against typing errors: the paper prints these numbers twice."""
    tables = paper_tables()
    for number, row, other, same in ((2, "mu 0.5", 3, "conv2_3"), (6, "ESRGAN", 7, "VGG"),
                                     (6, "ESRGAN-DP", 7, "VGG + ResNet + dynamic weight")):  # fmt: skip
        assert tables[number].rows[row] == tables[other].rows[same]
    for kind in ("psnr", "ssim", "lpips"):
        assert tables[5].value("VGG loss only", "SRGAN-DP", kind) == tables[2].value("VGG loss only", "BSD100", kind)
        assert tables[5].value("mu 0.5, conv4_6", "ESRGAN-DP", kind) == tables[6].value("ESRGAN-DP", "BSD100", kind)
    assert tables[4].value("SRGAN-DP", "Set5", "lpips") == tables[3].value("conv4_6", "Set5", "lpips")
    assert tables[4].value("SRGAN-DP", "Set5", "psnr") is None


def test_a_run_is_the_same_in_every_study() -> None:
    """Trainings that several tables need run once, under one name."""
    runs: dict[str, tuple[object, ...]] = {}
    for name in NAMES[:-1]:  # `small` has runs of its own
        study = read_study(name)
        for row in study.rows:
            if row.run:
                train_file = ROOT / study.bases[row.base]["train"]
                opt = read_options(train_file)
                override(opt, row.overrides)
                assert opt["train"]["perceptual_opt"]["type"] == "DPLoss"
                assert runs.setdefault(row.run, (train_file, opt)) == (train_file, opt)
    assert len(runs) == 19


def test_a_smoke_row_trains_and_is_tested(pairs: Path) -> None:
    """With the real option files, overrides and programs; the demo's data is four small pairs here."""
    study = replace(read_study("terms"), smoke=read_smoke())
    jobs = {job.name: job for job in make_jobs(study)}
    job = jobs["smoke_ESRGAN_DP_terms_3_dynamic"]
    data = [f"datasets:train:dataroot_gt={pairs / 'GT'}", f"datasets:train:dataroot_lq={pairs / 'LRbicx4'}"]
    data += ["datasets:train:io_backend:type=disk", "train:total_iter=1", "train:perceptual_opt:resnet_type=resnet18"]
    data += ["train:perceptual_opt:vgg_type=vgg11", "train:perceptual_opt:vgg_layer_weights={conv5_2: 1}"]
    target = Path("datasets/demo/test")
    target.parent.mkdir(parents=True)
    target.symlink_to(pairs)
    train.main([*job.train_command()[2:], *data])
    assert job.is_trained()
    assert not job.is_tested()
    test.main(job.test_command()[2:])
    assert job.is_tested()
    folder = write_study(study, [])
    text = (folder / "table.md").read_text()
    assert "SMOKE of Study terms" in text
    for term in ("vgg", "resnet", "lpips"):
        assert re.search(rf"VGG \+ ResNet \+ LPIPS, dynamic \| {term} \| [\d.]+% \(1\)", text)
    assert (folder / "shares.png").stat().st_size > 1000


def test_overrides_win_over_those_of_a_smoke_run(capsys: pytest.CaptureFixture[str]) -> None:
    own = "datasets:train:dataroot_gt=mine"
    assert main(["ablation", "--smoke", "--gpus", "0", "--dry-run", "--force_yml", own]) == 0
    for line in re.findall("^python .*train.py .*$", capsys.readouterr().out, re.MULTILINE):
        assert re.findall(r"datasets:train:dataroot_gt=\S+", line)[-1] == own


def fake_programs(
    monkeypatch: pytest.MonkeyPatch, fails: str = "", set_name: str = "Set5", end: str = 'sys.exit("no memory left")'
) -> Path:
    """Fake train.py and test.py that record their calls and write the files of the real ones."""
    calls = Path("calls.txt").resolve()
    calls.touch()
    code = f"""
import os, shutil, sys
program, job = sys.argv[1:3]
with open({str(calls)!r}, "a") as file:
    file.write(f"{{program}} {{job}} {{os.environ['CUDA_VISIBLE_DEVICES']}}\\n")
if job == {fails!r}:
    {end}
if program == "train.py":
    os.makedirs(f"experiments/{{job}}/models")
    open(f"experiments/{{job}}/models/net_g_latest.pth", "w").close()
else:
    shutil.copytree("template", f"results/{{job}}/evaluation", copy_function=shutil.copyfile)
"""

    def command(program: str, options: Path, flags: list[str], overrides: list[str]) -> list[str]:
        return [sys.executable, "-c", code, program, overrides[0].removeprefix("name=")]

    monkeypatch.setattr(runner, "_command", command)
    write_evaluation(made_up(26.0, set_name), Path("template"))
    return calls


def made_up(psnr: float, name: str) -> Evaluation:
    scores = {"psnr_rgb": psnr, "psnr_y": psnr + 2, "ssim_rgb": 0.7, "ssim_y": 0.8}
    images = [Measured(name, "baby", method, Path("gt"), None, None, scores) for method in (BICUBIC, "Ours")]
    return Evaluation(4, METRICS, {}, tuple(images))


def test_gpus_that_are_not_there_are_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """ultralytics/yolov3#517."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "--gpus 3: expected at most 1, the GPUs here" in refused(main, ["ablation", "--gpus", "3"])


def test_done_rows_are_skipped_and_changed_ones_refused(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    calls = fake_programs(monkeypatch)
    assert main(["ablation", "--gpus", "0"]) == 0
    names = [row.run for row in read_study("ablation").rows]
    assert calls.read_text().split() == [word for name in names for word in ("train.py", name, "test.py", name)]
    assert main(["ablation", "--gpus", "0"]) == 0
    assert len(calls.read_text().splitlines()) == 6

    record = Path(f"experiments/{names[0]}.study.yml")
    started = yaml.safe_load(record.read_text())
    own = "train:total_iter=1"
    record.write_text(yaml.safe_dump(started | {"overrides": [own, *started["overrides"]]}))
    assert "was trained with other options" in refused(main, ["ablation", "--gpus", "0"])
    assert main(["ablation", "--gpus", "0", "--part", "1/3", "--force_yml", own]) == 0  # in another order the same
    assert len(calls.read_text().splitlines()) == 6


def test_a_study_outlives_the_reader_of_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """``dp-basicsr study ablation | head``: the trainings take days."""
    calls = fake_programs(monkeypatch)
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert main(["ablation", "--gpus", "0"]) == 0
    assert len(calls.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ('sys.exit("no memory left")', "training ended with code 1: no memory left"),
        # talos#162: the lines behind are those of a study that was started a second time.
        ('sys.exit("error: in use\\nepoch 7")', "training ended with code 1: error: in use\n"),
        ("os.kill(os.getpid(), 9)", "training: SIGKILL ended it (out of memory?); the same command continues it, and"),
    ],
)
def test_a_failed_row_is_named_and_the_others_continue(
    end: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_programs(monkeypatch, fails="ESRGAN_DP_static_layer3", end=end)
    assert main(["ablation", "--gpus", "0"]) == 1
    output = capsys.readouterr()
    assert f"ESRGAN_DP_static_layer3: {reason}" in output.err
    assert "ESRGAN_DP_mu0.5_layer3: done" in output.out
    assert "test.py ESRGAN_DP_static_layer3" not in calls.read_text()
    row = next(line for line in output.out.splitlines() if line.startswith("| VGG + ResNet |"))
    assert "n/a / n/a / n/a<br>26.92 / 0.7711 / 0.1017<br>n/a / n/a / n/a" in row


def test_table_5_has_a_column_for_each_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_programs(monkeypatch, set_name="BSD100")
    assert main(["correlation", "--gpus", "0"]) == 0
    table = capsys.readouterr().out
    assert "|  | SRGAN-DP | ESRGAN-DP |" in table
    row = next(line for line in table.splitlines() if line.startswith("| mu 1, conv2_3 |"))
    cells = [cell.strip().split("<br>") for cell in row.strip("|").split("|")[1:]]
    assert [cell[0] for cell in cells] == ["26.00 / 0.7000 / n/a"] * 2
    assert [cell[1] for cell in cells] == ["25.95 / 0.7259 / 0.1447", "25.43 / 0.7007 / 0.1329"]
    assert "| PSNR RGB [dB] | n/a | +1.00 |" in table  # ours are all equal here, so there is no order


def test_runs_share_out_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_programs(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    Runner(2).run(make_jobs(read_study("beta")), retest=False)
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert len(lines) == 8
    assert {device for *_, device in lines} == {"3", "5"}


def test_the_parts_of_a_study_cover_it_once_and_a_dry_run_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The tasks of a SLURM array run each training exactly once."""
    for number in (1, 2, 3):
        assert main(["mu", "--dry-run", "--part", f"{number}/3"]) == 0
    output = capsys.readouterr().out
    names = sorted(job.name for job in make_jobs(read_study("mu")))
    assert sorted(re.findall("^# ([^:\n]+)", output, re.MULTILINE)) == names
    assert main(["mu", "--dry-run", "--part", "8/9"]) == 0
    assert capsys.readouterr().out == "# part 8 of 9 has no trainings\n"
    assert output.count("train.py -opt") == output.count("test.py -opt") == len(names) == 7
    assert "train:perceptual_opt:mu=0.2" in output
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *((["mu", "--dry-run", "--part", part], "expected K/N") for part in ("0/3", "4/3", "a/b")),
        (["comparison", "--result", "ESRGAN-DP=x", "--dry-run"], "rows of comparison that take images: DRN, Enh"),
        (["ablation", "--result", "RCAN=x", "--dry-run"], "rows of ablation that take images: none"),
        (["ablation", "--gpus", "0"], "was not created by a study"),
    ],
)
def test_mistakes_are_named_and_a_folder_not_made_by_a_study_is_not_changed(
    arguments: list[str], message: str, refused: Refused
) -> None:
    Path("experiments/ESRGAN_DP_vgg").mkdir(parents=True)
    assert message in refused(main, arguments)
    assert [path.name for path in Path().rglob("*")] == ["experiments", "ESRGAN_DP_vgg"]


def test_cells_show_ours_the_paper_s_and_the_difference() -> None:
    study = read_study("ablation")
    ours = {("VGG", "Set5"): {"psnr_rgb": 26.0, "psnr_y": 28.0, "ssim_rgb": 0.75, "ssim_y": 0.8, "lpips_alex": 0.1}}
    text = study_markdown(study, study.sets, ours)
    assert "26.00 / 0.7500 / 0.1000<br>26.50 / 0.7565 / 0.1080<br>-0.50 / -0.0065 / -0.0080" in text
    assert "28.00 / 0.8000 / n/a<br>26.50 / 0.7565 / 0.1080<br>+1.50 / +0.0435 / n/a" in text
    rows = list(csv.DictReader(study_csv(study, study.sets, ours).splitlines()))
    assert len(rows) == 3 * 4 * 6
    first = next(row for row in rows if row["metric"] == "psnr_rgb")
    assert (first["ours"], first["paper"], float(first["difference"])) == ("26.0", "26.5", -0.5)
    # A smoke run's numbers are never compared with the paper's.
    study = replace(study, smoke=read_smoke())
    smoke = study_markdown(study, ["Set5"], ours)
    assert smoke.count("SMOKE") == 2
    assert "26.00" in smoke
    assert not re.search("26.50|Song", smoke)
    lines = csv.DictReader(study_csv(study, ["Set5"], ours).splitlines())
    assert all(row["paper"] == row["difference"] == "" for row in lines)


def test_rank_correlation() -> None:
    """The paper's own Table 5: LPIPS ranks 4 2 3 1 and 4 2 3 1 alike, PSNR 4 1 3 2 and 4 1 3 2 as well."""
    study, columns = read_study("correlation"), ["SRGAN-DP", "ESRGAN-DP"]
    values = {"SRGAN-DP": [1.0, 2.0, 3.0, 4.0], "ESRGAN-DP": [40.0, 30.0, 20.0, 10.0]}
    cells = {
        (label, column): {"psnr_y": values[column][n]} for n, label in enumerate(study.labels) for column in columns
    }
    lines = rank_lines(study, columns, cells)
    assert next(line for line in lines if "PSNR Y" in line) == "| PSNR Y [dB] | -1.00 | +1.00 |"
    assert next(line for line in lines if "LPIPS AlexNet" in line).startswith("| LPIPS AlexNet | n/a | +")


def test_a_study_stopped_while_starting_a_training_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives when the child runs, before the study has recorded it."""
    monkeypatch.setattr(runner, "_command", lambda *arguments: [sys.executable, "-c", "import time; time.sleep(60)"])
    start = subprocess.Popen
    children = []

    def start_and_stop(*arguments: Any, **keywords: Any) -> Any:
        children.append(start(*arguments, **keywords))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", start_and_stop)
    assert main(["ablation", "--gpus", "0"]) == 128 + signal.SIGTERM
    assert [child.wait() for child in children] == [-signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_study_leaves_no_training_behind(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper = "import os, time; open('started', 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(runner, "_command", lambda *arguments: [sys.executable, "-c", sleeper])

    def stop_when_started() -> None:
        while not Path("started").is_file() or not Path("started").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_started, daemon=True).start()
    assert main(["ablation", "--gpus", "0"]) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("started").read_text()), 0)
    said = capsys.readouterr()
    assert "done" not in said.out
    assert said.err == "stopped; the same command resumes from the last saved states\n"
