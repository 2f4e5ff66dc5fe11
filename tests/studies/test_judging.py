"""The study with seeds: calibration, equal distortion and intervals against closed forms, and its files."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

from dp_basicsr.options import override, read_options
from dp_basicsr.studies.calibration import calibrate, calibration_file, read_network, study_options, weights_of
from dp_basicsr.studies.judging import ALPHAS, Judged, at_drop, blend, bootstrap, judge_runs, judged_markdown, psnr_loss
from dp_basicsr.studies.results import write_study
from dp_basicsr.studies.runner import make_jobs
from dp_basicsr.studies.study import Study, read_smoke, read_study
from dp_basicsr.utils.arguments import ROOT

import numpy as np
import pytest
import torch

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
        assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=0.12 * deviation)


def test_the_interval_of_one_image_and_seed_is_its_value() -> None:
    assert bootstrap(np.array([[0.25]]), draws=10) == (0.25, 0.25, 0.25)


def made_up(rng: random.Random, images: int = 3) -> tuple[Judged, float, list[tuple[float, float]]]:
    """A run whose PSNR falls and whose judge changes in proportion to alpha: its scores, loss and judge's lines."""
    loss = rng.uniform(0.05, 1)
    lines = [(rng.uniform(0.3, 0.6), rng.uniform(-0.2, 0.2)) for _ in range(images)]
    shares = [rng.uniform(0.5, 1.5) for _ in range(images)]
    scores = {
        f"image{number}": [
            {"psnr_y": 30 + number - alpha * loss * share * images / sum(shares), "deep": a + b * alpha}
            for alpha in ALPHAS
        ]
        for number, ((a, b), share) in enumerate(zip(lines, shares, strict=True))
    }
    return {"set": scores}, loss, lines  # type: ignore[dict-item]


def test_objectives_are_compared_where_they_have_lost_the_same_psnr() -> None:
    """On straight lines the blend that has lost ``drop`` is alpha = drop / loss."""
    for rng in draws(30):
        judged, loss, lines = made_up(rng)
        assert psnr_loss(judged, "set")[-1] == pytest.approx(loss)
        drop = loss * rng.uniform(0.01, 1)
        assert at_drop(judged, "set", drop) == pytest.approx([a + b * drop / loss for a, b in lines])


def test_blends_are_rounded_once() -> None:
    first, second = np.array([[[0, 255, 10]]], np.uint8), np.array([[[3, 0, 11]]], np.uint8)
    assert blend(first, second, 0.5).tolist() == [[[2, 128, 11]]]
    assert np.array_equal(blend(first, second, 1), second)


@pytest.fixture
def study(pairs: Path) -> Study:
    """The shipped study with two rows, two seeds and two small photographs; its runs are networks without training."""
    for number in (2, 3):
        for folder in ("GT", "LRbicx4"):
            (pairs / folder / f"image{number}.png").unlink()
    target = Path("datasets/demo/test")
    target.parent.mkdir(parents=True)
    target.symlink_to(pairs)
    shipped = read_study("small")
    study = replace(shipped, rows=tuple(row for row in shipped.rows if row.label in ("VGG", "Eq. 9")), seeds=(0, 1))
    study = replace(study, comparisons=(("Eq. 9", "VGG"),))
    path = calibration_file(study, read_smoke())
    path.parent.mkdir()
    path.write_text("overrides: {vgg: [], dynamic: ['train:perceptual_opt:loss_weight=0.5']}")
    opt = study_options(study, read_smoke())
    for number, job in enumerate(make_jobs(study, read_smoke())):
        torch.manual_seed(number)
        job.model.parent.mkdir(parents=True)
        network = read_network(opt, None)
        torch.save({"params_ema": network.state_dict()}, job.model)
    return study


def test_a_study_is_judged_once_and_written(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    smoke = read_smoke()
    jobs = make_jobs(study, smoke)
    assert [job.name for job in jobs] == [f"smoke_small_{n}_seed{s}" for s in (0, 1) for n in ("vgg", "dynamic")]
    assert "train:perceptual_opt:loss_weight=0.5" in jobs[1].train
    judge_runs(study, smoke, jobs)
    judged = json.loads((Path("results") / jobs[3].name / "judged.json").read_text())
    assert list(judged["photographs"]) == ["image0", "image1"]
    assert [len(scores) for scores in judged["photographs"]["image0"]] == [5, 2, 2, 2, 5]
    capsys.readouterr()
    judge_runs(study, smoke, jobs)
    assert capsys.readouterr().out == ""  # nothing is judged twice
    folder = write_study(study, smoke, [], ())
    text = (folder / "table.md").read_text()
    assert text == judged_markdown(study, smoke)
    assert "## photographs (2 images)" in text
    assert "| VGG | 2 |" in text
    assert "±" in text
    assert "| Eq. 9 - VGG (named beforehand) |" in text
    assert (folder / "judge.png").stat().st_size > 1000


def test_calibration_is_measured_once_on_the_study_s_own_data(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small random networks; every calibrated row then has its overrides."""
    data = [f"datasets:train:dataroot_gt={pairs / 'GT'}", f"datasets:train:dataroot_lq={pairs / 'LRbicx4'}"]
    data += ["datasets:train:io_backend:type=disk"]
    data += ["train:perceptual_opt:vgg_type=vgg11", "train:perceptual_opt:vgg_layer_weights={conv5_2: 1}"]
    smoke = read_smoke()
    smoke = replace(smoke, train=(*smoke.train, *data))
    study = read_study("small")
    calibrate(study, smoke)
    path = calibration_file(study, smoke)
    written = path.read_text()
    assert "mini_batches: 2" in written
    monkeypatch.setattr(torch, "manual_seed", None)  # would fail if it were measured again
    calibrate(study, smoke)
    for job in make_jobs(study, smoke):
        is_calibrated = "none" not in job.name and "published" not in job.name
        assert any("loss_weight" in entry for entry in job.train) == is_calibrated


def test_the_rows_differ_in_the_perceptual_term_alone() -> None:
    study = read_study("small")
    assert {label for pair in study.comparisons for label in pair} <= {row.label for row in study.rows}
    options = []
    for row in study.rows:
        opt = read_options(ROOT / study.bases[row.base]["train"])
        override(opt, (*study.overrides, *row.overrides))
        opt["train"].pop("perceptual_opt")
        options.append(opt)
    assert all(opt == options[0] for opt in options)
