"""The real command lines on a small run: train, stop, resume, test; two processes; error messages."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr import test, train
from dp_basicsr.errors import EXIT_RETRY
from dp_basicsr.evaluation.files import read_evaluation
from dp_basicsr.models import PSNRModel

import pytest
import torch

from tests.support.networks import make_network, network_file
from tests.support.options import SMALL, SMALL_PSNR, write_small
from tests.support.processes import TORCHRUN, processes_in
from tests.support.programs import ROOT, code_of, logs_of, losses_of, run_well, same_weights

Refused = Callable[..., str]

# The paper's discriminator, whose batch-norm has its own state.
BATCH_NORM = ("network_d={type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 4}", "datasets:train:gt_size=128")


@pytest.fixture
def folder(tmp_path: Path, pairs: Path) -> Path:
    (tmp_path / "small.yml").write_text(SMALL)
    return tmp_path


def test_train_stop_resume_test(folder: Path, device: torch.device) -> None:
    """A run that stops at 4 (saved at 3) and resumes is bit-identical to an uninterrupted one."""
    gpus = f"num_gpu={int(device.type == 'cuda')}"
    options = ("-opt", "small.yml", "--force_yml", gpus, "deterministic=true", *BATCH_NORM)
    whole = run_well("train.py", *options, "--force_yml", "name=whole")
    run_well("train.py", *options, "train:total_iter=4")
    resumed = run_well("train.py", *options, "--auto_resume")

    assert "Resuming training from epoch: 0, iter: 3" in resumed
    assert losses_of(resumed).keys() == {4, 5, 6, 7}
    assert losses_of(resumed).items() <= losses_of(whole).items()
    models = folder / "experiments"
    for name in ("net_g_latest.pth", "net_d_latest.pth", "net_g_6.pth"):
        assert same_weights(models / "whole/models" / name, models / "small/models" / name)

    assert "not_there is skipped: no such folder: datasets/nowhere" in whole
    assert re.search(r"Validation there\s+# psnr_rgb: \d+\.\d+", whole)
    assert len(list((models / "whole/visualization").rglob("*.png"))) == 4
    assert len(list((models / "whole").glob("train_whole_*.log"))) == 1
    assert (models / "whole/small.yml").read_text().endswith(SMALL)
    assert list((folder / "tb_logger/whole").iterdir())

    model = "path:pretrain_network_g=experiments/whole/models/net_g_latest.pth"
    tested = run_well("test.py", "-opt", "small.yml", "--force_yml", gpus, model, "path:param_key_g=params_ema")
    psnr = re.findall(r"# psnr_rgb: (\d+\.\d+)", whole)[-1]
    assert f"# psnr_rgb: {psnr}\n" in tested  # without a best one
    network = "network_g={type: FromFile, path: experiments/whole/models/net_g_latest.pth}"
    assert f"# psnr_rgb: {psnr}" in run_well("test.py", "-opt", "small.yml", "--force_yml", gpus, network)
    assert "not_there is skipped" in tested
    assert len(list((folder / "results/small/visualization/there").glob("*_small.png"))) == 4
    tables = read_evaluation(folder / "results/small/evaluation")
    assert (tables.sets, tables.methods) == (["there"], ["Bicubic", "small"])
    assert tables.average("there", "small")["psnr_rgb"] == pytest.approx(float(psnr), abs=1e-4)
    assert tables.metrics == ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")
    assert "| Bicubic |" in tested


@pytest.mark.parametrize("model", ["ESRGANDPModel", "SRModel"])
@pytest.mark.parametrize(
    ("val", "images"),
    [("~", 4), ("{}", 4), ("{save_img: ~}", 4), ("{metrics: {m: {type: calculate_psnr, crop_border: 4}}}", 4),
     ("{save_img: false}", 0)],
)  # fmt: skip
def test_a_test_without_val_saves_its_images(
    val: str, images: int, model: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BasicSR#623: KeyError: 'val'."""
    network = network_file(num_block=1, num_grow_ch=4)
    write_small(f"val={val}", f"path:pretrain_network_g={network}", f"model_type={model}")
    test.main(["-opt", "small.yml"])
    assert len(list(Path("results").rglob("there/*_small.png"))) == images
    assert ("No tables written" in caplog.text) == (images == 0)
    assert ("# m: " in caplog.text) == ("metrics" in val)


def test_two_processes(folder: Path) -> None:
    """With torchrun's variables: the group is found; only rank 0 writes; a resumed run has the same losses."""
    single = ["--force_yml", "datasets:train:batch_size_per_gpu=1"]
    log = run_well("train.py", "-opt", "small.yml", *single, processes=2)
    assert losses_of(log).keys() == set(range(1, 8))
    assert len(list((folder / "experiments").iterdir())) == 1
    again = ["--auto_resume", "--launcher", "pytorch", *single, "train:total_iter=8"]
    resumed = run_well("train.py", "-opt", "small.yml", *again, processes=2)
    assert losses_of(resumed)[7] == losses_of(log)[7]


# A loss that raises in a step of some ranks, and images that cannot be read from one on.
PLUG_IN = """
import os
from itertools import count
import torch
from dp_basicsr.archs.rrdbnet_dp_arch import RRDBNetDP
from basicsr.losses.basic_loss import L1Loss
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from dp_basicsr.data.datasets import DiskClient

steps, images, get = count(1), count(1), DiskClient.get

@LOSS_REGISTRY.register()
class SomeLoss(L1Loss):
    def forward(self, *arguments):
        if os.environ["RANK"] in os.environ["RAISE"] and next(steps) == int(os.environ["STEP"]):
            raise KeyError(os.environ["RANK"])
        return super().forward(*arguments)

@ARCH_REGISTRY.register()
class Unused(RRDBNetDP):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.unused = torch.nn.Linear(2, 2)

def unread(self, *arguments):
    if os.environ["RANK"] in os.environ["UNREAD"] and next(images) > 2 * 5:
        raise ValueError("I/O error")
    return get(self, *arguments)

DiskClient.get = unread
"""


def train_two(folder: Path, *words: str, **settings: str) -> tuple[int | None, str]:
    """Train on two processes; return torchrun's exit code, and what all print."""
    (folder / "plug_in.py").write_text(PLUG_IN)
    write_small(
        "train:pixel_opt={type: SomeLoss}", "train:total_iter=7", "logger:save_checkpoint_freq=3", base=SMALL_PSNR
    )
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", str(ROOT / "dp_basicsr/train.py"), "small.yml"]
    with processes_in(folder) as started:
        environment = {"RAISE": "", "STEP": "", "UNREAD": "", "OMP_NUM_THREADS": "1"} | settings
        started.start([*command, "--import", "plug_in", *words], **environment)
        (code,), (said,) = started.ends(0)
    return code, said


@pytest.mark.parametrize(("ranks", "step"), [("1", 1), ("1", 5), ("01", 5), ("0", 5)])
def test_what_others_code_raises_in_two_processes_is_one_message(ranks: str, step: int, folder: Path) -> None:
    code, said = train_two(folder, RAISE=ranks, STEP=str(step))
    # torchrun's own, and the reason in its summary.
    assert code == 1
    assert re.search(r"Root Cause [\s\S]* exitcode  : 2 [\s\S]*UserError: ", said)
    (message,) = re.findall(r"^error: .*", said, re.MULTILINE)
    pattern = (
        r"KeyError: '[01]' \(.*/plug_in\.py:\d+(; batch: .*)?\); its traceback is in experiments/small/train_.*\.log"
    )
    rest = "; iteration 3 is saved: continue with --auto_resume" if step > 3 else ""
    assert re.search(rf"error: (the first step failed: )?{pattern}{rest}$", message)
    assert "in forward" not in said, said
    assert "in forward" in logs_of()


def test_two_processes_save_before_an_image_that_cannot_be_read_ends_them(folder: Path) -> None:
    assert train_two(folder, "--force_yml", "name=whole")[0] == 0
    for ranks in ("0", "1", "01"):
        name = ["--force_yml", f"name=unread_{ranks}"]
        _, said = train_two(folder, *name, UNREAD=ranks)
        assert said.count("exitcode  : 2") >= 1
        (message,) = re.findall(r"^error: .*", said, re.MULTILINE)
        assert re.search("I/O error .*; iteration 5 is saved: continue with --auto_resume$", message)
        assert train_two(folder, "--auto_resume", *name)[0] == 0
        assert "Resuming training from epoch: 1, iter: 5" in logs_of(f"unread_{ranks}")
        models = (folder / "experiments" / run / "models/net_g_latest.pth" for run in (f"unread_{ranks}", "whole"))
        assert same_weights(*models)


def test_two_processes_name_the_parameters_that_a_step_does_not_use(folder: Path) -> None:
    _, said = train_two(folder, "--force_yml", "network_g:type=Unused")
    (message,) = re.findall(r"^error: .*", said, re.MULTILINE)
    assert "that a step does not use (unused.bias, unused.weight)" in message


SHORT = ["-opt", "small.yml", "--force_yml", "datasets:train:num_worker_per_gpu=0"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("train:perceptual_opt:mu=-1", "mu: expected a number > 0"),
        ("datasets:train:dataroot_gt=pairs", "datasets: pairs"),
    ],
)
def test_a_run_that_cannot_start_writes_nothing_and_keeps_the_earlier_one(
    entry: str, words: str, folder: Path, refused: Refused
) -> None:
    """A mistake in the options, and images that only opening the data shows not to fit."""
    earlier = folder / "experiments/small/models"
    earlier.mkdir(parents=True)
    (line,) = [line for line in refused(train.main, [*SHORT, entry]).splitlines() if line.startswith("error: ")]
    assert words in line
    assert [path.name for path in (folder / "experiments").iterdir()] == ["small"]
    assert list(earlier.iterdir()) == []


def test_a_broken_image_is_named(folder: Path, refused: Refused) -> None:
    broken = folder / "pairs/GT/image2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert "pairs/GT/image2.png" in refused(train.main, SHORT)


def test_non_finite_losses_stop_the_run(folder: Path, refused: Refused) -> None:
    error = refused(train.main, [*SHORT, "train:optim_g:lr=1e30", "train:max_nonfinite=3"])
    assert "iteration 4: 3 consecutive steps were not finite" in error
    said = r"iteration 2: l_g_\w+, .*not finite, the step is skipped; batch: pairs/GT/image\d.png"
    assert re.search(said, logs_of())
    assert list(Path("experiments").rglob("*.pth")) == []


def without_finite_losses(monkeypatch: pytest.MonkeyPatch, *iterations: int) -> None:
    """Make the images of some iterations infinite."""
    feed = PSNRModel.feed_data
    count = iter(range(1, 100))

    def feed_data(self: PSNRModel, data: dict[str, Any]) -> None:
        if next(count) in iterations:
            data["gt"] = data["gt"] * math.inf
        feed(self, data)

    monkeypatch.setattr(PSNRModel, "feed_data", feed_data)


PSNR = [*SHORT, "val=null", "train:total_iter=6", "model_type=PSNRModel", "train:perceptual_opt=null"]


@pytest.mark.parametrize(
    ("bad", "every", "words"),
    [
        (range(1, 7), 3, "the last 6 step.s. were not finite: net_g_latest is not saved; nothing is saved"),
        (range(4, 7), 2, "the last 3 step.s. were not finite: net_g_latest is not saved; iteration 2 is saved"),
    ],
)
def test_no_latest_network_is_saved_after_non_finite_steps(
    bad: Sequence[int], every: int, words: str, monkeypatch: pytest.MonkeyPatch, folder: Path, refused: Refused
) -> None:
    without_finite_losses(monkeypatch, *bad)
    assert re.search(words, refused(train.main, [*PSNR, f"logger:save_checkpoint_freq={every}"]))
    assert not list(Path("experiments").rglob("net_g_latest.pth"))


def test_one_bad_batch_at_the_end_is_logged(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    without_finite_losses(monkeypatch, 6)
    train.main(PSNR)
    assert "The last step was not finite and is not part of net_g_latest" in logs_of()
    assert Path("experiments/small/models/net_g_latest.pth").is_file()


@pytest.mark.parametrize(
    ("bad", "words", "saved"),
    [
        ((), "iteration 4 is saved: ", ["3", "4"]),
        ((4,), "iteration 3 is saved: ", ["3"]),
        ((1, 2, 3, 4), "nothing is saved: ", []),
    ],
)
def test_a_stopped_run_reports_its_checkpoints_correctly(
    bad: Sequence[int], words: str, saved: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    without_finite_losses(monkeypatch, *bad)
    step = PSNRModel.optimize_parameters

    def optimize_parameters(self: PSNRModel, iteration: int) -> None:
        step(self, iteration)
        if iteration == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(PSNRModel, "optimize_parameters", optimize_parameters)
    assert code_of(train.main, PSNR) == EXIT_RETRY
    assert f"SIGTERM: stopped after iteration 4; {words}" in logs_of()
    assert sorted(path.stem for path in Path("experiments/small/training_states").glob("*.state")) == saved


def test_our_model_resumes_a_run_of_basicsr_s(folder: Path) -> None:
    """Its states have an unfused Adam, and its checkpoints no manifest; its start weights are not needed any more."""
    plain = [*SHORT, "network_d=null", "train:perceptual_opt=null", "train:channels_last=false"]
    plain += ["path:pretrain_network_g=start.pth"]
    torch.save({"params": make_network(num_grow_ch=4, num_block=1).state_dict()}, "start.pth")
    train.main([*plain, "model_type=SRModel", "train:total_iter=3"])
    Path("start.pth").unlink()
    assert code_of(train.main, [*plain, "model_type=PSNRModel"]) == 2, "a new start needs them"
    train.main([*plain, "model_type=PSNRModel", "--auto_resume", "--check"])
    state = "path:resume_state=experiments/small/training_states/3.state"
    train.main([*plain, "model_type=PSNRModel", "name=named", "train:total_iter=4", state])
    train.main([*plain, "model_type=PSNRModel", "train:total_iter=5", "--auto_resume"])
    said = logs_of()
    assert "Resuming training from epoch: 0, iter: 3" in said
    assert "the state is another package's, BasicSR's or an older version's" in said
    assert not list(Path("experiments/small").rglob("net_d_*"))


def test_without_a_network_there_is_nothing_to_test(folder: Path, refused: Refused) -> None:
    assert "pretrain_network_g" in refused(test.main, ["-opt", "small.yml"])
