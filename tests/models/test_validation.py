"""Validation in threads, in tiles and split over processes, against BasicSR's own loop on the same images."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401
from dp_basicsr.errors import UserError
from dp_basicsr.models import validation

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import METRIC_REGISTRY
from torch.utils.data import DataLoader

from tests.support.networks import swinir
from tests.support.processes import processes_in
from tests.support.validation import METRICS, SIZES, files, make_loader, make_model

pytestmark = pytest.mark.usefixtures("device")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def loader(tmp_path: Path) -> DataLoader:
    """Five pairs of different sizes, as from train.py's evaluation_loaders."""
    return make_loader(tmp_path)


@pytest.mark.parametrize(("ema", "is_train", "suffix"), [(0, True, None), (0.5, False, None), (0, False, "end")])
def test_values_and_files_equal_basicsr_s(
    ema: float, is_train: bool, suffix: str | None, loader: DataLoader, tmp_path: Path
) -> None:
    """The same values and files as BasicSR's loop, for different sizes; the network can train afterwards."""
    val = {"suffix": suffix, "threads": 3}
    theirs, ours = (make_model(tmp_path / name, val, train={"ema_decay": ema}) for name in ("theirs", "ours"))
    for model in (theirs, ours):
        model.opt["is_train"] = is_train
        if ema:  # what is measured is the averaged network
            torch.nn.init.zeros_(model.net_g.conv_last.weight)
    SRModel.nondist_validation(theirs, loader, 7, None, True)
    random_state = torch.get_rng_state()
    assert ours.validation(loader, 7, None, True)
    assert ours.validator.results == theirs.metric_results
    assert 5 < ours.validator.results["psnr"] < 60
    assert ours.validator.best == theirs.best_metric_results
    written = files(tmp_path / "ours/visualization")
    assert len(written) == len(SIZES)
    assert written == files(tmp_path / "theirs/visualization")
    assert ours.net_g.training
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_best_value_is_remembered_and_nothing_is_written_unless_asked(loader: DataLoader, tmp_path: Path) -> None:
    model, board = make_model(tmp_path), Mock()
    assert model.validation(loader, 1, board)
    assert not (tmp_path / "visualization").exists()
    best = model.validator.results["psnr"]
    assert call("metrics/five/psnr", best, 1) in board.add_scalar.mock_calls
    torch.nn.init.zeros_(model.net_g.conv_last.weight)
    torch.nn.init.constant_(model.net_g.conv_last.bias, -1)  # black
    model.validation(loader, 2, board)
    assert model.validator.results["psnr"] < best
    assert model.validator.best["five"]["psnr"] == {"better": "higher", "val": best, "iter": 1}
    model.opt["val"]["metrics"] = None
    assert model.validation(loader, 1, None, True)
    assert len(files(tmp_path / "visualization")) == len(SIZES)


@pytest.mark.parametrize(("arch", "scale"), [("RRDBNetDP", 4), ("RRDBNet", 2)])  # the second supports only even sizes
def test_tiles_bound_the_input_and_leave_no_seam(arch: str, scale: int, tmp_path: Path) -> None:
    network: dict[str, Any] = {"arch": arch, "scale": scale}
    whole = make_model(tmp_path / "whole", **network)
    tiled = make_model(tmp_path / "tiled", {"tile": 65, "tile_overlap": 24}, **network)
    hard = make_model(tmp_path / "hard", {"tile": 65, "tile_overlap": 0}, **network)
    seen = []
    tiled.net_g.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2:]))
    sample = {
        "lq": torch.nn.functional.interpolate(torch.rand(1, 3, 45, 40), scale_factor=2, mode="bicubic").clip(0, 1)
    }
    outputs = []
    for model in (whole, tiled, hard):
        model.feed_data(sample)
        model.test()
        outputs.append(model.output.cpu())
        assert torch.equal(model.lq.cpu(), sample["lq"])
    assert len(seen) > 1
    assert max(max(size) for size in seen) <= 65
    difference = (outputs[1] - outputs[0]).abs().max()
    assert difference < 1e-3
    assert (outputs[2] - outputs[0]).abs().max() > 20 * difference, "without an overlap there must be a seam to see"
    assert tiled.net_g.training


@pytest.mark.parametrize(
    ("arch", "scale", "multiple", "tile"),
    [("RRDBNet", 2, 2, None), ("RRDBNet", 1, 4, None), ("SwinIR", 2, 4, None), ("SwinIR", 2, 4, 24)],
)
def test_networks_that_need_certain_sizes_accept_any(
    arch: str, scale: int, multiple: int, tile: int | None, tmp_path: Path
) -> None:
    """The result is that of the padded image, cropped; that of tiles is close to it."""
    torch.manual_seed(0)
    model = make_model(tmp_path, {"tile": tile}, arch="RRDBNet", scale=scale)
    if arch == "SwinIR":
        model.net_g = swinir().to(model.device)
    lq = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 7), size=(37, 29), mode="bicubic").clip(0, 1)
    model.feed_data({"lq": lq})
    model.test()
    assert torch.equal(model.lq.cpu(), lq)
    padded = torch.nn.functional.pad(lq, (0, -29 % multiple, 0, -37 % multiple), mode="reflect")
    with torch.no_grad():
        expected = model.net_g.eval()(padded.to(model.device)).cpu()[..., : 37 * scale, : 29 * scale]
    assert model.output.shape == expected.shape
    assert (model.output.cpu() - expected).abs().mean() <= (0.05 if tile else 0)


def test_a_set_without_originals_is_upscaled_and_not_measured(
    loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"name": "bare", "type": "SingleImageDataset", "phase": "val", "scale": 4, "io_backend": {"type": "disk"},
               "dataroot_lq": str(tmp_path / "set/lq")}  # fmt: skip
    bare = build_dataloader(build_dataset(options), options)
    mean = {"type": "mean_of_result"}
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "mean_of_result", lambda img, **_: float(img.mean()))
    model, warnings = make_model(tmp_path, {"metrics": METRICS | {"mean": mean}}), Mock()
    monkeypatch.setattr(validation, "get_root_logger", lambda: Mock(warning=warnings))
    for iteration in (1, 2):
        assert model.validation(bare, iteration, None, True)
    assert model.validator.results.keys() == {"mean"}
    assert warnings.mock_calls == [call("bare has no originals (dataroot_gt): psnr, ssim_y cannot be computed")]
    assert len(files(tmp_path / "visualization")) == 2 * len(SIZES)
    model.opt["val"]["metrics"] = METRICS
    assert model.validation(bare, 3, None)


def stock_model(folder: Path) -> Any:
    """A model whose validation is BasicSR's."""
    model = make_model(folder)
    del model.validator
    model.test = lambda: setattr(model, "output", model.net_g(model.lq).detach())
    model.validation = lambda *args: SRModel.nondist_validation(model, *args)
    return model


def test_basicsr_s_models_upscale_a_set_without_originals_too(loader: DataLoader, tmp_path: Path) -> None:
    """BasicSR#326: after the first image a metric missed its second one, and the others were not upscaled."""
    options = {"name": "bare", "type": "SingleImageDataset", "phase": "val", "scale": 4, "io_backend": {"type": "disk"},
               "dataroot_lq": str(tmp_path / "set/lq")}  # fmt: skip
    model = stock_model(tmp_path)
    validation.validate(model, build_dataloader(build_dataset(options), options), 1, None, True)
    assert len(files(tmp_path / "visualization")) == len(SIZES)
    validation.validate(model, loader, 1, None, False)
    assert model.metric_results.keys() == METRICS.keys()


def test_the_network_continues_while_a_metric_is_computed(
    loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image's metric waits until the network has processed the second; otherwise it would time out."""
    second_image, seen = threading.Event(), []

    def slow_metric(img: np.ndarray, img2: np.ndarray, **_: Any) -> float:
        return float(second_image.wait(timeout=60))

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "slow_metric", slow_metric)
    model = make_model(tmp_path, {"metrics": {"slow": {"type": "slow_metric"}}})
    model.net_g.register_forward_hook(lambda *_: (seen.append(1), second_image.set() if len(seen) > 1 else None)[0])
    assert model.validation(loader, 1, None)
    assert model.validator.results == {"slow": 1.0}


def test_the_number_of_waiting_images_is_bounded(loader: DataLoader, tmp_path: Path) -> None:
    """At most `threads` plus one images wait to be measured, however slow that is."""
    waiting, most = [], []
    model = make_model(tmp_path, {"threads": 1})
    measure, upscale = model.validator._measure, model.validator.upscale

    def counted(*args: Any) -> Any:
        values = measure(*args)
        waiting.pop()
        return values

    def upscaled(*args: Any) -> Any:
        result = upscale(*args)
        waiting.append(1)
        most.append(len(waiting))
        return result

    model.validator._measure, model.validator.upscale = counted, upscaled
    assert model.validation(loader, 1, None)
    assert max(most) <= 3
    assert len(most) == len(SIZES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("visualization/image3", r"validation of image3: .*image3_1\.png cannot be written"),
        (
            "set/gt/image2.png",
            r"image .*gt/image2\.png cannot be used: one is missing or does not decode; `.*data check",
        ),
        ("set/gt/image4.png", "validation of image4: Image shapes are different"),
    ],
)
def test_an_image_that_cannot_be_read_measured_or_written_is_named(
    spoil: str, message: str, loader: DataLoader, tmp_path: Path
) -> None:
    (tmp_path / "visualization").mkdir()
    (tmp_path / spoil).write_bytes(b"\x89PNG")
    if "image4" in spoil:
        cv2.imwrite(str(tmp_path / spoil), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        make_model(tmp_path).validation(loader, 1, None, True)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_result_that_is_not_finite_has_no_figures(
    loader: DataLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Restormer#121: as 8 bits it is black, which has a PSNR, and was the best network."""
    caplog.set_level(logging.INFO, "basicsr")
    model = make_model(tmp_path)
    model.net_g.conv_last.bias.data[0] = math.inf
    assert model.validation(loader, 1, None, True)
    assert all(map(math.isnan, model.validator.results.values()))
    assert {entry["iter"] for entry in model.validator.best["five"].values()} == {-1}
    assert not list(tmp_path.rglob("*_1.png"))
    assert re.search(r"psnr of 5 of 5 images not finite, and not in the mean: (image\d,? ){4}and 1", caplog.text)
    model.opt["is_train"] = False
    with pytest.raises(UserError, match="image.: the network gives values that are not finite"):
        model.validation(loader, 1, None, True)


def test_basicsr_s_models_measure_no_result_that_is_not_finite(loader: DataLoader, tmp_path: Path) -> None:
    """As 8 bits it is black: 5 dB, which may be the best figure."""
    model = stock_model(tmp_path)
    weights, bias = model.net_g.conv_last.bias.data, model.net_g.conv_last.bias.data.clone()
    weights[0] = math.nan
    validation.validate(model, loader, 1, None, False)
    assert all(map(math.isnan, model.metric_results.values()))
    assert {entry["iter"] for entry in model.best_metric_results["five"].values()} == {-1}
    model.opt["is_train"] = False
    with pytest.raises(UserError, match="five: the network gives values that are not finite"):
        validation.validate(model, loader, 1, None, False)
    weights[:] = bias
    model.net_g_ema = None  # as a model of another package may have it
    validation.validate(model, loader, 1, None, False)
    assert model.metric_results["psnr"] > 5


def test_results_of_one_colour_are_named_once(
    loader: DataLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """cszn/BSRGAN#43: trained for a day, every test image was one uniform patch."""
    model = make_model(tmp_path)
    model.validation(loader, 3, None)
    for weight in model.net_g.parameters():
        weight.data.zero_()
    model.validation(loader, 0, None)
    assert "almost one colour" not in caplog.text
    for iteration in (5, 10):
        model.validation(loader, iteration, None)
    assert caplog.text.count("Each result of five is almost one colour") == 1


def test_a_flat_result_has_no_niqe_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    images = {"img": np.full((200, 200, 3), 127, np.uint8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about means of nothing
        value = validation.value_of("image0: niqe", images, {"type": "calculate_niqe", "crop_border": 4})
    assert math.isnan(value)
    assert "validation of image0: niqe is n/a: SVD did not converge" in caplog.text


def test_what_others_metrics_and_networks_raise_is_one_message_and_its_traceback_logged(
    loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(images: Any, opt: Any) -> float:
        raise KeyError("oops")

    # Beside those that there are, one of which is caplog's.
    monkeypatch.setattr(get_root_logger(), "handlers", [*get_root_logger().handlers, logging.FileHandler("log")])
    monkeypatch.setattr(validation, "calculate_metric", broken)
    with pytest.raises(UserError, match=r"validation of image\d: KeyError: 'oops'"):
        make_model(tmp_path).validation(loader, 1, None)
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {KeyError}
    caplog.clear()
    model = make_model(tmp_path)
    model.validator.upscale = broken
    with pytest.raises(UserError, match=r"image\d: the network cannot take its image \(.*\): KeyError: 'oops' \(.*\)"):
        model.validation(loader, 1, None)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]

    def too_large(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    model.validator.upscale = too_large
    with pytest.raises(UserError, match=r"validation of image\d: out of memory; set `val: tile: 256` or less"):
        model.validation(loader, 1, None)


def test_an_interrupted_validation_has_no_result(loader: DataLoader, tmp_path: Path) -> None:
    model = make_model(tmp_path)
    answers = iter([False, False, True])
    model.validator.interrupted = lambda: next(answers)
    assert model.validation(loader, 1, None) is False
    assert model.validator.best == {}
    model.validator.interrupted = lambda: False
    assert model.validation(loader, 2, None) is True
    assert model.validator.best["five"]["psnr"]["iter"] == 2


def test_several_processes_give_the_values_of_one(tmp_path: Path) -> None:
    """Five images on two processes, bit for bit; then an error and an interruption on one, which both report."""
    with processes_in(tmp_path) as processes:
        processes.start(*[[str(ROOT / "tests/models/validation_worker.py")]] * 2)
        codes, outputs = processes.ends(0, 1, limit=300)
    assert codes == [0, 0], outputs


def test_means_and_best_of_any_values_equal_a_closed_form(tmp_path: Path) -> None:
    """A perfect (inf) or unmeasurable image (NaN) is left out; a mean without any finite value is no best one."""
    rng = np.random.default_rng(0)
    for better, worst in (("higher", -math.inf), ("lower", math.inf)):
        model = make_model(tmp_path, {"metrics": {"m": {"type": "calculate_psnr", "better": better}}})
        best, best_iteration = worst, -1
        for iteration in range(1, 31):
            values = [{"m": float(value)} for value in rng.choice([30, 31.5, math.inf, -math.inf, math.nan], 4)]
            finite = [value["m"] for value in values if math.isfinite(value["m"])]
            model.validator._take_results([("image", value) for value in values], "set", iteration, None)
            mean = math.fsum(finite) / len(finite) if finite else math.nan
            assert math.isfinite(model.validator.results["m"]) == bool(finite)
            if finite:
                assert model.validator.results["m"] == mean
                if mean >= best if better == "higher" else mean <= best:
                    best, best_iteration = mean, iteration
            assert model.validator.best["set"]["m"] == {"better": better, "val": best, "iter": best_iteration}
