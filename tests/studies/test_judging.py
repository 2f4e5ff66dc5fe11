"""The study with seeds: calibration, equal distortion and intervals against closed forms, and its files."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from dp_basicsr import train
from dp_basicsr.checks.checking import find_problems
from dp_basicsr.commands import study as command
from dp_basicsr.options import override, read_options
from dp_basicsr.studies.calibration import calibration_file, weights_of
from dp_basicsr.studies.comparing import at_drop, bootstrap, psnr_loss
from dp_basicsr.studies.judging import ALPHAS, COLUMNS, blend, read_judged
from dp_basicsr.studies.runner import Runner, StudyRun, make_jobs
from dp_basicsr.studies.study import Row, Study, read_smoke, read_study
from dp_basicsr.utils.arguments import ROOT

import numpy as np
import pytest
import yaml

from tests.support.fuzz import draws


def test_calibrated_objectives_have_the_norm_of_vgg() -> None:
    """Against gradients made here: the norm of each combination, times its loss_weight, is that of VGG on average."""
    for draw in draws(20):
        rng = np.random.default_rng(draw.randrange(10**9))
        batches = [(*rng.normal(0, (3, 0.2), (40, 2)).T, rng.uniform(5, 15)) for _ in range(draw.randint(1, 8))]
        measured = [(float(v @ v), float(r @ r), float(v @ r), w) for v, r, w in batches]
        found = weights_of(measured)
        mean_w = np.mean([w for *_, w in batches])
        entries = {
            name: {entry.split("=")[0].split(":")[-1]: float(entry.split("=")[1]) for entry in overrides}
            for name, overrides in found["overrides"].items()
        }
        gradients = {
            "vgg": [v for v, _, _ in batches],
            "resnet": [r for _, r, _ in batches],
            "static": [v + mean_w * r for v, r, _ in batches],
            "dynamic": [v + w * r for v, r, w in batches],
        }
        expected = np.mean([np.linalg.norm(gradient) for gradient in gradients["vgg"]])
        assert entries["static"]["static_weight"] == pytest.approx(mean_w, rel=1e-5)
        for name, values in gradients.items():
            norm = np.mean([np.linalg.norm(gradient) for gradient in values])
            assert entries[name]["loss_weight"] * norm == pytest.approx(expected, rel=1e-5), name


def test_the_interval_is_the_closed_form_s() -> None:
    """For differences that are a number for the image plus one for the seed, the two draws are independent.

    So the variance of a draw's mean is var(images) / images + var(seeds) / seeds, and with many of both it is normal.
    """
    for draw in draws(3):
        rng = np.random.default_rng(draw.randrange(10**9))
        images, seeds = rng.normal(draw.uniform(-1, 1), 1, 60), rng.normal(0, 0.7, 40)
        mean, low, high = bootstrap(seeds[:, None] + images[None], draws=4000)
        deviation = math.sqrt(images.var() / 60 + seeds.var() / 40)
        assert mean == pytest.approx(images.mean() + seeds.mean())
        assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=0.2 * deviation)


def test_the_interval_of_one_image_and_seed_is_its_value() -> None:
    assert bootstrap(np.array([[0.25]]), draws=10) == (0.25, 0.25, 0.25)


def test_objectives_are_compared_where_they_have_lost_the_same_psnr() -> None:
    """On straight lines the blend that has lost ``drop`` is alpha = drop / loss."""
    for rng in draws(30):
        loss, images, alphas = rng.uniform(0.05, 1), 3, np.array(ALPHAS)
        shares = np.array([rng.uniform(0.5, 1.5) for _ in range(images)])
        starts, slopes = (np.array([rng.uniform(-0.2, 0.6) for _ in range(images)]) for _ in range(2))
        psnr = 30 - np.outer(loss * shares / shares.mean(), alphas)
        scored = {"psnr_y": psnr, "deep": starts[:, None] + np.outer(slopes, alphas)}
        assert psnr_loss(scored)[-1] == pytest.approx(loss)
        drop = loss * rng.uniform(0.01, 1)
        assert at_drop(scored, drop) == pytest.approx(starts + slopes * drop / loss)


def test_blends_are_rounded_once() -> None:
    first, second = np.array([[[0, 255, 10]]], np.uint8), np.array([[[3, 0, 11]]], np.uint8)
    assert blend(first, second, 0.5).tolist() == [[[2, 128, 11]]]
    assert np.array_equal(blend(first, second, 1), second)


@pytest.fixture
def small(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The shipped study with two rows, small networks and two photographs; it trains in this process."""
    for path in [*pairs.glob("*/image2.png"), *pairs.glob("*/image3.png")]:
        path.unlink()
    Path("datasets/demo").mkdir(parents=True)
    Path("datasets/demo/test").symlink_to(pairs)
    Path("datasets/demo/HR_sub.lmdb").symlink_to(pairs)  # the demo's data is not created
    data = [f"datasets:train:dataroot_gt={pairs / 'GT'}", f"datasets:train:dataroot_lq={pairs / 'LRbicx4'}"]
    data += ["datasets:train:io_backend:type=disk", "train:total_iter=1"]
    data += ["train:perceptual_opt:vgg_layer_weights={conv2_1: 1}", "network_d:num_feat=2"]
    smoke = read_smoke()
    monkeypatch.setattr(command, "read_smoke", lambda: replace(smoke, train=(*smoke.train, *data)))
    shipped = read_study("small")
    rows = {row.label: row for row in shipped.rows}
    study = replace(shipped, rows=(rows["VGG"], rows["equal shares of the gradient"]), comparisons=())
    monkeypatch.setattr(command, "read_study", lambda name: study)

    def call(self: Runner, job: StudyRun, what: str, arguments: list[str], device: str) -> None:
        if job.name.endswith("seed1"):  # one training for both seeds
            shutil.copytree(Path("experiments", job.name.replace("seed1", "seed0")), Path("experiments", job.name))
        else:
            train.main(arguments[2:])

    monkeypatch.setattr(Runner, "_call", call)
    return study


def test_a_study_is_trained_judged_once_and_written(small: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of ``dp-basicsr study small --smoke``, then again beside a training that has not ended."""
    assert command.main(["small", "--smoke", "--gpus", "0"]) == 0
    names = ["smoke_small_vgg_seed0", "smoke_small_vgg_seed1", "smoke_small_gradient_seed0"]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.endswith(": judged")] == [f"{name}: judged" for name in names]
    folder = Path("results/studies/smoke_small")
    text = (folder / "table.md").read_text()
    assert text in out
    assert "## photographs (2 images)" in text
    assert re.search(r"\| VGG \| 2 \| [\d.]+ ± [\d.]+ \|", text)
    assert re.search(r"\| equal shares of the gradient \| 1 \| [\d.]+ \|", text)
    assert "NIQE: 0 of the 2 images; it needs 12 blocks of 96 x 96 pixels." in text
    assert {path.name for path in folder.iterdir()} == {"table.md", "judge.png", "shares.png"}
    judged = json.loads(Path("results", names[2], "judged.json").read_text())["sets"]["photographs"]
    assert list(judged) == ["image0", "image1"]
    assert all(len(scores) == len(ALPHAS) and scores[-1].keys() == set(COLUMNS) for scores in judged.values())
    assert Path("results", names[0], "photographs/image1.png").is_file()

    experiments = Path("experiments")
    calibration = (experiments / "smoke_small.calibration.yml").read_text()
    assert "mini_batches: 2" in calibration
    (experiments / names[1] / "models" / "net_g_latest.pth").unlink()
    os.utime(experiments / names[0] / "models" / "net_g_latest.pth")
    assert command.main(["small", "--smoke", "--gpus", "0", "--no-training"]) == 0
    out = capsys.readouterr().out
    assert f"not trained yet: {names[1]}\n" in out
    assert [line for line in out.splitlines() if line.endswith(": judged")] == [f"{names[0]}: judged"]
    assert (experiments / "smoke_small.calibration.yml").read_text() == calibration


def test_judged_with_other_metrics_counts_as_not_judged(small: Study) -> None:
    job = make_jobs(replace(small, rows=(Row("none", "small", "run"),)))[0]
    path = Path("results", job.name, "judged.json")
    path.parent.mkdir(parents=True)
    for metrics, is_judged in ((COLUMNS, True), (COLUMNS[1:], False)):
        path.write_text(json.dumps({"metrics": metrics, "sets": {"Set5": {}}}))
        assert bool(read_judged(job)) == is_judged


@pytest.mark.parametrize("is_smoke", [False, True])
def test_rows_with_seeds_of_their_own_come_last_and_all_are_valid(is_smoke: bool) -> None:
    study = replace(read_study("small"), smoke=read_smoke() if is_smoke else None)
    Path("experiments").mkdir()
    entries = {name: ["train:perceptual_opt:loss_weight=0.5"] for name in ("vgg", "resnet", "static", "dynamic")}
    calibration_file(study).write_text(yaml.safe_dump({"overrides": entries}))
    jobs = make_jobs(study)
    assert len(jobs) == 6 * 3 + 3
    names = [job.name.removeprefix("smoke_") for job in jobs]
    assert names[:2] == ["small_vgg_seed0", "small_resnet_seed0"]
    assert names[-3:] == ["small_dynamic_times3_seed0", "small_mu1_seed0", "small_gradient_seed0"]
    assert "train:perceptual_opt:loss_weight=1.5" in jobs[-3].train
    assert not any("loss_weight" in entry for entry in jobs[-2].train)
    for job in (*jobs[:6], *jobs[-3:]):
        opt = read_options(job.train_file)
        override(opt, job.train)
        texts = [str(problem.text) for problem in find_problems(opt, is_train=True)]
        # The data is not here, and a smoke run ends before the milestones.
        assert [text for text in texts if not re.search("no such|iterations up to train:total_iter", text)] == []


def test_the_rows_differ_in_the_perceptual_term_alone() -> None:
    study = read_study("small")
    assert {label for pair in study.comparisons for label in pair} <= {row.label for row in study.rows}
    options = []
    for row in study.rows:
        opt = read_options(ROOT / study.bases[row.base]["train"])
        override(opt, (*study.overrides, *row.overrides))
        opt["train"].pop("perceptual_opt")
        opt["train"].pop("balance", None)  # of the terms of the perceptual loss alone
        options.append(opt)
    assert all(opt == options[0] for opt in options)
