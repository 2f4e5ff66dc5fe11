"""`train.py --check`: reports problems, tries a step, estimates the cost, and writes nothing."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.archs import pretrained
from dp_basicsr.runs import trial

import pytest
import torch
import yaml
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN

from tests.support.options import write_small_gan


@pytest.fixture
def options(pairs: Path, tmp_path: Path) -> Path:
    write_small_gan()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *entries: str) -> tuple[int, str, str]:
    """Exit code, output and errors; nothing may have been written."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    code = 0
    for handler in logging.getLogger("basicsr").handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr  # the stream of an earlier test is closed
    try:
        train.main(["-opt", "small.yml", "--check", *(["--force_yml", *entries] if entries else [])])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return code, *capsys.readouterr()


def test_a_valid_run(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "train:net_d_init_iters=3")
    assert (code, err) == (0, "")
    assert "one step of SRGANDPModel on 2 pairs of the data (lq 2 x 3 x 8 x 8)" in out
    for words in ("l_g_percep", "l_d_fake", "s per iteration", "for 7 iterations", "GiB", "the paper's is 16"):
        assert words in out
    assert out[out.index("small: one step") :].count("\n") == 5


def test_the_estimate_works_without_data(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = ["datasets:train:dataroot_gt=nowhere", "path={pretrain_network_g: no.pth}"]
    code, out, err = run(capsys, *entries)
    assert code == 2
    assert "on 2 random pairs (lq 2 x 3 x 8 x 8)" in out
    assert "'nowhere': no such folder" in err
    assert "'no.pth': no such file" in err


def test_broken_data(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs/GT/image1.png").unlink()
    code, out, err = run(capsys)
    assert code == 2
    assert "on 2 random pairs" in out
    assert "datasets: pairs" in err


def test_a_missing_tensorboard_is_known_before_the_run(
    options: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert run(capsys)[::2] == (2, "error: tensorboard is not installed: pip install tensorboard\n")


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_broken_logger_is_known_before_the_run(
    package: str, options: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rf-detr#844: installed, but its import fails."""
    (options / "broken" / package).mkdir(parents=True)
    (options / "broken" / package / "__init__.py").write_text("raise TypeError('Descriptors')")
    monkeypatch.syspath_prepend(str(options / "broken"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what the check leaves behind is compared
    monkeypatch.delitem(sys.modules, package, raising=False)
    code, _, err = run(capsys, "logger:wandb={project: x}")
    assert code == 2
    assert re.match(
        rf"error: {package}.* is installed, but cannot be used \(TypeError: Descriptors\): pip install", err
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train:total_itr=3", "did you mean total_iter"),
        ("train:optim_g:lr=1e30", "not finite"),
        ("path={pretrain_network_g: small.yml}", "cannot be read"),
    ],
)
def test_problems_are_one_message(entry: str, message: str, options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, entry)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_step_that_fails_is_one_message(
    options: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(UNetDiscriminatorSN, "forward", forward)
    code, _, err = run(capsys)
    assert code == 2
    assert "the step failed: RuntimeError: no kernel" in err
    assert "Traceback" not in err


def test_imagenet_weights_are_not_downloaded(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trial uses random weights and names those that the run would download."""
    weights = ["train:perceptual_opt:vgg_weights=imagenet", "train:perceptual_opt:resnet_weights=imagenet"]
    terms = "[{network: squeezenet1_1, layer_weights: {features.3: 1}}, {type: LPIPSLoss, net: alex}]"
    extra = f"train:perceptual_opt:extra_terms={terms}"
    code, out, _ = run(capsys, *weights, extra)
    assert code == 0
    named = [line.split()[5] for line in out.splitlines() if "note:" in line]
    assert named == ["vgg11", "resnet18", "squeezenet1_1", "alexnet"]
    here = Path(torch.hub.get_dir(), "checkpoints", pretrained.weights_url("vgg11").rsplit("/", 1)[1])
    here.parent.mkdir(parents=True)
    torch.save({}, here)
    damaged = Path("damaged.pth")
    damaged.write_bytes(here.read_bytes()[:-9])
    problems: list[str] = []
    terms = [{"network": "alexnet", "weights": name} for name in (str(damaged), "nowhere.pth", "random")]
    loss = {"type": "DPLoss", "vgg_type": "vgg11", "extra_terms": terms}
    assert [note.split()[4] for note in trial.try_weights(loss, problems)] == ["resnet50"]
    assert [problem.partition(":")[0] for problem in problems] == [
        "state_dict damaged.pth cannot be read",
        "weights of alexnet",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "59 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (7200, "2.0 hours"), (4.4e6, "50.9 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert trial.duration(seconds) == words


def test_batches_of_several_processes() -> None:
    data: dict[str, Any] = {"batch_size_per_gpu": 4}
    opt = {"datasets": {"train": data}, "dist": False, "num_gpu": 2, "world_size": 1}
    assert trial.batch_size(opt) == 8
    assert trial.batch_size(opt | {"dist": True, "world_size": 4}) == 4
    data["batch_size_total"] = 16
    assert trial.batch_size(opt | {"dist": True, "world_size": 4}) == 4


def add_validation(**dataset: Any) -> None:
    """Put one validation set, and a metric, into the option file."""
    val = {"name": "v", "type": "PairedImageDataset", "io_backend": {"type": "disk"}, "dataroot_gt": "pairs/GT",
           "dataroot_lq": "pairs/LRbicx4", **dataset}  # fmt: skip
    write_small_gan(
        datasets=yaml.safe_load(Path("small.yml").read_text())["datasets"] | {"val": val},
        val={"val_freq": 2, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
    )


def test_a_validation_that_works_is_tried(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_validation()
    assert run(capsys)[::2] == (0, "")
    add_validation(type="SingleImageDataset", dataroot_gt=None, meta_info_file=None)
    assert run(capsys)[::2] == (0, "")


def test_a_validation_that_would_fail_hours_later_is_refused(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (options / "few").mkdir()
    shutil.copy(options / "pairs/LRbicx4/image0.png", options / "few")
    add_validation(dataroot_lq="few")
    code, _, err = run(capsys)
    assert code == 2
    assert "different number of images" in err
    for number in range(1, 4):
        shutil.copy(options / f"pairs/LRbicx4/image{number}.png", options / "few")
    (options / "few/image0.png").write_bytes(b"rubbish")
    code, _, err = run(capsys)
    assert code == 2
    assert "image0.png" in err
