"""When to stop, and whether a run is still better than where it began."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.options import read_options
from dp_basicsr.options.schema import OptionFile, Val
from dp_basicsr.runs.changes import describe_changes
from dp_basicsr.runs.judging import IN_A_ROW, Judge
from dp_basicsr.utils.arguments import SHIPPED

import cv2
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.fuzz import draws
from tests.support.options import SMALL, parse_options, write_small
from tests.support.programs import logs_of

PSNR, LPIPS = {"type": "calculate_psnr"}, {"type": "calculate_lpips", "better": "lower"}


def judge(of_pixels: bool = False, **val: Any) -> Judge:
    return Judge(Val(save_img=False, metrics={"psnr": PSNR, "lpips": LPIPS}, **val), of_pixels)


def test_patience_counts_as_its_definition_says() -> None:
    """Against a closed form: validations after the last strict improvement of any watched figure."""
    for rng in draws(200):
        delta, keys = rng.choice([0, 0.5]), rng.choice([["s/psnr"], ["s/lpips"], ["s/psnr", "s/lpips"]])
        figures = [{"psnr": value(rng), "lpips": value(rng)} for _ in range(rng.randint(1, 8))]
        counter = judge(patience=3, monitor=keys, min_delta=delta)
        for iteration, figure in enumerate(figures, start=1):
            counter.judge(iteration, {"s": figure}, {})
            counter.judge(iteration, {"s": figure}, {})  # repeated by a resumed run
            counter.judge(iteration + 1 / 2, {"t": figure}, {})  # of a set that no key names
        last = 0
        for key in keys:
            sign, best = -1 if key == "s/lpips" else 1, -math.inf
            for number, figure in enumerate(figures, start=1):
                new = sign * figure[key[2:]]
                if math.isfinite(new) and (best == -math.inf or new - best > delta):
                    best, last = new, max(last, number)
        assert counter.waited == len(figures) - last
        assert counter.is_over() == (counter.waited >= 3)


def value(rng: random.Random) -> float:
    return rng.choice([1.0, 1.25, 1.5, 2.0, 2.25, 3.0, math.inf, math.nan])


def test_warnings_compare_with_the_start(caplog: pytest.LogCaptureFixture) -> None:
    watching = judge()
    watching.take_start({"s": {"psnr": 30.0, "lpips": 0.2}}, {"s": 0.5})
    for iteration in range(1, IN_A_ROW + 1):
        assert "every metric is worse" not in caplog.text
        watching.judge(iteration, {"s": {"psnr": 29.0, "lpips": 0.3}}, {"s": 2.4})
    assert "For 3 validations every metric is worse than the start's: s/psnr 29 (start: 30), s/lpips 0.3" in caplog.text
    assert "mean colour" not in caplog.text
    watching.judge(9, {"s": {"psnr": 29.0, "lpips": 0.1}}, {"s": 2.6})
    assert "The mean colour of s is 2.6 of 255 levels from its LQ's, 2.1 more than with" in caplog.text


@pytest.mark.parametrize("of_pixels", [True, False])
def test_a_lower_psnr_is_told_where_pixels_alone_are_trained(of_pixels: bool, caplog: pytest.LogCaptureFixture) -> None:
    """HAT#110: own pairs made a network worse, of which only its figures told; a GAN's fall by design."""
    watching = judge(of_pixels)
    watching.take_start({"s": {"psnr": 30.0}}, {})
    for iteration in range(1, IN_A_ROW + 1):
        watching.judge(iteration, {"s": {"psnr": 29.0}}, {})
    assert ("every metric is worse" in caplog.text) == of_pixels


@pytest.fixture
def run(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    times = iter(range(100))
    monkeypatch.setattr("dp_basicsr.runs.log.get_time_str", lambda: f"{next(times):03}")
    Path("small.yml").write_text(SMALL)

    def start(*entries: str, name: str = "small") -> str:
        train.main(["-opt", "small.yml", "--auto_resume", "--force_yml", f"name={name}", "model_type=PSNRModel",
                    "train:perceptual_opt=~", "datasets:train:num_worker_per_gpu=0", "logger:use_tb_logger=false",
                    "train:optim_g:lr=1e-12", "train:ema_decay=0", "train:total_iter=9", "val:save_img=false",
                    "val:val_freq=1", "train:scheduler:milestones=[5]", *entries])  # fmt: skip
        return logs_of(name).rpartition("Version Information")[2]

    return start


def test_a_run_ends_when_its_patience_does_and_resumes_the_count(run: Any) -> None:
    """Weights that hardly change: PSNR improves by less than min_delta after the first validation."""
    entries = ["val:patience=3", "val:min_delta=0.1", "val:monitor=[there/psnr_rgb]", "logger:save_checkpoint_freq=1"]
    log = run(*entries)
    assert "no improvement in 3 validations, the training ends after iteration 4. Best: there/psnr_rgb" in log
    assert re.search(r"@ \d: net_g_best_there_psnr_rgb.pth", log)
    state = torch.load("experiments/small/training_states/4.state", weights_only=False)
    for number in (3, 4):
        for suffix in ("state", "sha256"):
            Path(f"experiments/small/training_states/{number}.{suffix}").unlink()
    assert "the training ends after iteration 4" in run(*entries)
    again = torch.load("experiments/small/training_states/4.state", weights_only=False)
    assert state["judge"] == again["judge"]
    assert state["judge"]["waited"] in (2, 3)
    assert "the training ends after iteration 4" in run(*entries)


def test_the_start_weights_are_a_baseline_but_no_best(run: Any) -> None:
    run("train:total_iter=1", "logger:save_checkpoint_freq=1")
    start = "path={pretrain_network_g: experiments/small/models/net_g_1.pth}"
    log = run(start, "train:total_iter=2", "logger:keep_best=true", name="tuned")
    baseline, rest = log.split("Start training")[1].split("iter:       1,")
    assert re.search(r"baseline.*\n.*Validating, iter: 0\n.*Validation there\n\s+# psnr_rgb: [\d.]+\n", baseline)
    assert "Best: " in rest
    assert " @ 0 iter" not in rest
    without = run(start, "train:total_iter=2", "val:at_start=false", name="without")
    assert "Validation" not in without.split("iter:       1,")[0]


def test_the_log_says_what_the_options_change(run: Any) -> None:
    """Beside the nearest shipped file, and beside the previous start of that name."""
    first = run("train:total_iter=2", "val=~")
    (shipped,) = re.findall(r"Options beside (\S+\.yml): (.*)", first)
    assert "and" in shipped[1]
    assert "previous start" not in first
    again = run("train:total_iter=3", "val=~", "logger:save_checkpoint_freq=2")
    expected = "Options beside the previous start: train:total_iter 3 (2), logger:save_checkpoint_freq 2 (3)"
    assert expected in again
    ran = Path("experiments/small/options.json").read_text()
    complete = run("train:total_iter=2", "val=~", "train:pixel_opt:loss_weight=2")
    assert complete.count("Options beside") == again.count("Options beside")
    assert Path("experiments/small/options.json").read_text() == ran, "a start that trains nothing says nothing of it"
    # mmengine#1155: the options that a run leaves are those of another one, also if it was cut short.
    options = read_options(Path("experiments/small/options.json"))
    assert max(options["train"]["scheduler"]["milestones"]) > options["train"]["total_iter"]
    assert parse_options(["-opt", "experiments/small/options.json"], is_train=True)["train"] == options["train"]


@pytest.mark.parametrize("change", ["images", "settings", "nothing"])
def test_a_best_figure_is_of_the_images_and_settings_of_now(change: str, pairs: Path) -> None:
    """mmsegmentation#2428: harder images in the middle of a project, and no later network could be the best."""
    metric = {"type": "calculate_psnr", "crop_border": 4}
    write_small("val:val_freq=2", f"val:metrics={{psnr: {metric}}}", "logger:keep_best=true", "val:save_img=false")
    options = ["-opt", "small.yml", "--force_yml", "logger:save_checkpoint_freq=2", "train:total_iter=4"]
    assert train.main(options) is None
    if change == "images":
        cv2.imwrite("pairs/GT/image0.png", cv2.imread("pairs/GT/image0.png") // 2 + 128)  # a network begins at black
    entries = [f"val:metrics={{psnr: {metric | {'test_y_channel': True}}}}"] if change == "settings" else []
    assert train.main([*options, *entries, "train:total_iter=6", "--auto_resume"]) is None
    assert ("The best psnr of there is forgotten" in logs_of()) == (change != "nothing")
    figures = sorted({float(text) for text in re.findall(r"# psnr: (\S+)", logs_of())})
    state = torch.load("experiments/small/training_states/6.state", weights_only=True)
    # Lower with harder images, so that an older figure would stay the best one.
    expected = min(figures) if change == "images" else max(figures)
    assert state["best_metric_results"]["there"]["psnr"]["val"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("change", ["nothing", "settings", "logs", "model"])
def test_a_validation_that_a_resume_repeats_is_one_point(change: str, run: Any) -> None:
    """Of the same value, by our models and BasicSR's; another one is shown, and without logs it is not known."""
    entries = ["logger:use_tb_logger=true", "logger:save_checkpoint_freq=2", "val:val_freq=2", "train:ema_decay=0"]
    entries += ["model_type=SRModel", "train:optim_g:type=Adam"] if change == "model" else []
    run(*entries, "train:total_iter=2")
    entries += ["val:metrics:psnr_rgb:crop_border=0"] if change == "settings" else []
    for log in Path("experiments/small").glob("*.log") if change == "logs" else ():
        log.unlink()
    run(*entries, "train:total_iter=4")
    figures = EventAccumulator("tb_logger/small").Reload().Scalars("metrics/there/psnr_rgb")
    # Sorted, because files of one second are read by the names of their numbers: 10 before 9.
    assert sorted(figure.step for figure in figures) == ([2, 4] if change in ("nothing", "model") else [2, 2, 4])


def test_the_nearest_shipped_file_is_that_of_the_same_method_whatever_the_data() -> None:
    opt = read_options(SHIPPED / "train_compact_psnr.yml")
    opt["datasets"] = {"train": opt["datasets"]["train"] | {"dataroot_gt": "GT", "dataroot_lq": "LQ", "gt_size": 64}}
    opt["datasets"]["val"] = read_options(SHIPPED / "train_demo.yml")["datasets"]["val"]
    assert "beside train_compact_psnr.yml" in next(describe_changes(OptionFile.of(opt), Path()))
