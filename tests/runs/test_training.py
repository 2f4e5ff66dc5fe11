"""The folders of a run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr import inference, test, train
from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.errors import EXIT_RETRY
from dp_basicsr.models import PSNRModel
from dp_basicsr.models.validation import Validator
from dp_basicsr.options.reading import parse_yaml
from dp_basicsr.options.run import Folders, RunOptions
from dp_basicsr.options.schema import OptionFile
from dp_basicsr.runs import loop, training
from dp_basicsr.runs.judging import Judge
from dp_basicsr.runs.loop import how_to_upscale
from dp_basicsr.runs.training import make_folders
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.atomic_io import await_archive_name

import pytest
import torch
import yaml
from basicsr.losses.basic_loss import L1Loss
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

from tests.support.options import SMALL_PSNR, write_small
from tests.support.programs import code_of, logs_of, same_weights


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


def test_an_image_that_is_gone_loses_no_step(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """SRFBN_CVPR19#10: an I/O error of the disk with the data, in epoch 200."""
    write_small(base=SMALL_PSNR)
    assert code_of(train.main, ["small.yml"]) == 0
    shutil.move("experiments", "undisturbed")
    feed_data = PSNRModel.feed_data

    def feed_last(model: PSNRModel, batch: Any) -> None:
        feed_data(model, batch)
        if Path("experiments/small/models/net_g_2.pth").is_file():
            pairs.rename("elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(PSNRModel, "feed_data", feed_last)
        assert "No such file or directory; " in (text := refused(train.main, ["small.yml"]))
    assert text.endswith("; iteration 3 is saved: continue with --auto_resume\n")
    Path("elsewhere").rename(pairs)
    assert code_of(train.main, ["small.yml", "--auto_resume"]) == 0
    assert "Resuming training from epoch: 0, iter: 3" in logs_of()
    name = "small/models/net_g_latest.pth"
    assert same_weights(Path("undisturbed", name), Path("experiments", name))


def test_a_long_wait_for_images_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """pytorch#21554: everything hangs, without a word, when a worker does."""
    monkeypatch.setattr(loop, "Timer", lambda seconds, *rest: threading.Timer(seconds / 1000, *rest))

    def slow(iteration: int) -> Any:
        time.sleep(0.2)
        yield from (iteration, iteration + 1, iteration + 2)

    stream, options = SimpleNamespace(batches=slow), SimpleNamespace(training=SimpleNamespace(total_iter=9))
    training: Any = SimpleNamespace(stream=stream, iteration=7, saved=5, interruption=SimpleNamespace(error=None))
    training.run = SimpleNamespace(dist=True, options=options)
    assert list(loop.Training.batches(training)) == [7, 8]
    assert [text.partition(":")[0] for text in caplog.messages] == ["no images for 60 s"]
    assert caplog.messages[0].endswith("iteration 5 is saved: the same command with --auto_resume resumes from it")


@pytest.mark.parametrize(("hangs_at", "is_early"), [(1, False), (3, False), (1, True)])
def test_one_signal_ends_a_run_whose_loader_hangs(
    pairs: Path, hangs_at: int, is_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytorch#21554: its steps since the last checkpoint are saved; so no second Ctrl-C is needed, which loses them."""
    write_small(base=SMALL_PSNR)
    batches = loop.TrainStream.batches

    def hang(stream: Any, iteration: int) -> Any:
        for number, batch in enumerate(batches(stream, iteration), iteration + 1):
            if number == hangs_at:
                patch.delattr(signal, "SIGCHLD")  # as on Windows
                interrupt()
                time.sleep(60)
            yield batch

    def interrupt(*_: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainStream, "batches", hang)
        if is_early:
            patch.setattr(loop, "describe_batch", interrupt)
        assert code_of(train.main, ["small.yml"]) == EXIT_RETRY
    saved = {path.name for path in Path("experiments/small/models").glob("net_g_*")}
    assert saved == ({"net_g_2.pth"} if hangs_at == 3 else set())
    text = "iteration 2 is saved: the same command with --auto_resume resumes from it"
    assert (text if hangs_at == 3 else "nothing is saved: the same command starts again") in logs_of()


def test_a_validation_that_fails_loses_no_step(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """open-mmlab/mmagic#45: what trains in crops may not fit into memory as a whole image."""
    write_small(base=SMALL_PSNR)

    def too_large(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Validator, "upscale", too_large)
    pairs_too = "{name: pairs, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4}"
    overrides = ["val={val_freq: 3, save_img: false}", f"datasets:val={pairs_too}", "datasets:val:io_backend:type=disk"]
    said = refused(train.main, ["small.yml", "--force_yml", *overrides])
    expected = (
        "image0: out of memory; set `val: tile: 256` or less; iteration 3 is saved: continue with --auto_resume\n"
    )
    assert said.endswith(f"error: validation of {expected}")


@pytest.mark.parametrize("step", [1, 3])
def test_what_others_code_raises_is_one_message_and_the_traceback_in_the_log(
    step: int, pairs: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """Networks, losses and optimizers of others raise anything, at any step. What was trained before it is saved."""
    entries = ("val=null", "network_d={type: SmallDiscriminator}", "datasets:train:num_worker_per_gpu=0")
    write_small(
        *entries, "train:perceptual_opt=null", "train:scheduler={type: ExponentialLR, gamma: 0.5}", "train:total_iter=4"
    )
    calls, forward = iter(range(1, 100)), L1Loss.forward

    def noisy(*arguments: Any, fails: int = 0) -> Any:
        noise = torch.rand(())
        if next(calls) == fails:
            raise KeyError("no such\nluck")
        return forward(*arguments) + noise * forward(*arguments)

    monkeypatch.setattr(L1Loss, "forward", noisy)
    assert code_of(train.main, ["small.yml"]) == 0
    shutil.move("experiments", "undisturbed")
    calls = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(L1Loss, "forward", partialmethod(noisy, fails=step))
        said = refused(train.main, ["small.yml"])
    assert "Traceback" not in said
    first = r"the first step failed: KeyError: 'no such\\nluck' \(FILE:\d+; batch: lq \(.*\), gt \(.*\)\); LOG\n"
    later = r"KeyError: 'no such\\nluck' \(FILE:\d+\); LOG; iteration 2 is saved: continue with --auto_resume\n"
    pattern = (first if step == 1 else later).replace("FILE", __file__)
    pattern = pattern.replace("LOG", r"its traceback is in experiments/small/train_small_\w+\.log")
    assert re.fullmatch(f"error: {pattern}", said.splitlines(keepends=True)[-1])
    assert "Traceback (most recent call last)" in logs_of()
    assert code_of(train.main, ["small.yml", "--auto_resume"]) == 0
    for name in ("net_g_latest.pth", "net_d_latest.pth"):
        assert same_weights(Path("undisturbed/small/models", name), Path("experiments/small/models", name))


@pytest.mark.parametrize("step", [1, 3])
def test_a_fault_of_ours_leaves_its_traceback_on_the_screen(
    step: int, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a first step beside the message, because what others' code returns may be the cause."""
    write_small(base=SMALL_PSNR)
    feed_data, calls = PSNRModel.feed_data, iter(range(1, 9))

    def feed(model: PSNRModel, batch: Any) -> None:
        feed_data(model, batch)
        if next(calls) == step:
            monkeypatch.setattr("dp_basicsr.models.step.sum_of_parts", None)

    monkeypatch.setattr(PSNRModel, "feed_data", feed)
    with nullcontext() if step == 1 else pytest.raises(TypeError, match="not callable"):
        assert code_of(train.main, ["small.yml"]) == 2
    said = capsys.readouterr().err
    assert ("Traceback" in said and "error: the first step failed: TypeError" in said) == (step == 1)


def test_half_a_step_is_not_saved(pairs: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    """Of a model that changes weights beside our step, and then fails."""
    write_small(base=SMALL_PSNR)

    def optimize(model: PSNRModel, iteration: int) -> None:
        next(model.net_g.parameters()).data += 1
        if iteration == 4:
            # As on a GPU that has failed.
            monkeypatch.delattr("dp_basicsr.runs.loop.set_random_state")
            raise KeyError("no such luck")
        model.log_dict = model.step(model, iteration)

    monkeypatch.setattr(PSNRModel, "optimize_parameters", optimize)
    said = refused(train.main, ["small.yml"])
    assert "no such luck" in said
    assert said.endswith("; iteration 2 is saved: continue with --auto_resume\n")
    assert [path.name for path in Path("experiments/small/models").glob("net_g_*")] == ["net_g_2.pth"]


def test_attributes_of_other_models_and_networks_mean_nothing_here(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SRModel, "step", 0, raising=False)
    monkeypatch.setattr(RRDBNetDP, "options", object(), raising=False)
    for model in ("SRModel", "PSNRModel"):
        write_small(f"model_type={model}", base=SMALL_PSNR)
        assert code_of(train.main, ["small.yml"]) == 0


@ARCH_REGISTRY.register()
class Extended(RRDBNetDP):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.more = torch.nn.Linear(2, 2)


@MODEL_REGISTRY.register()
class ExtendedModel(PSNRModel):
    __module__ = "my_models"

    def init_training_settings(self) -> None:
        super().init_training_settings()
        self.cri_texture = L1Loss()


@pytest.mark.parametrize(("kind", "program"), [("Extended", "test"), ("RRDBNetDP", "upscale")])
def test_the_last_line_gives_a_command_that_upscales(
    kind: str, program: str, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(
        f"network_g:type={kind}",
        "name=two words",
        "train:ema_decay=0.5",
        "val={val_freq: 9, save_img: false, at_start: false}",
        f"model_type={'ExtendedModel' if program == 'test' else 'PSNRModel'}",
        base=SMALL_PSNR,
    )
    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    of_pixels = list[bool]()
    monkeypatch.setattr(training, "Judge", lambda val, given: of_pixels.append(given) or Judge(val, given))
    # As a trial does, whose milestones the copy of its options has, too.
    assert code_of(train.main, ["small.yml", "--force_yml", "train:total_iter=2"]) == 0
    assert of_pixels == [program == "upscale"], "a loss of one's own may lower the PSNR"
    command = logs_of("two words").splitlines()[-1].partition("next: ")[2]
    start = advise(program, "X").removesuffix("X")
    assert command.startswith(start)
    assert ("--import my_models" in command) == (program == "test")
    assert ("path:param_key_g=params_ema" in command) == (program == "test"), "the weights that validation measured"
    command = command.replace("IMAGES", str(pairs / "LRbicx4")).replace("FOLDER", "results")
    main = {"test": test, "upscale": inference}[program].main
    assert code_of(main, shlex.split(command.removeprefix(start))) == 0
    assert len(list(Path("results").rglob("*.png"))) == 4


def test_a_network_of_which_a_part_alone_would_open_is_tested_by_its_class() -> None:
    small = RRDBNetDP(3, 3, 4, num_feat=4, num_block=1, num_grow_ch=4)
    net = torch.nn.ModuleDict({"sr": small, "refine": torch.nn.Conv2d(3, 3, 3)})
    Path("run/models").mkdir(parents=True)
    torch.save({"params": net.state_dict()}, "run/models/net_g_5.pth")
    model = SimpleNamespace(net_g=net, get_bare_model=lambda net: net)
    assert how_to_upscale(model, Path("run/models/net_g_5.pth")).startswith(advise("test"))


def test_an_archive_name_that_is_taken_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """metatrain#446: two runs of one name within a second."""
    seconds = iter(["1", "1", "2", "3"])
    monkeypatch.setattr("time.strftime", lambda _: next(seconds))
    Path("run_archived_1").mkdir()
    await_archive_name("run")
    assert next(seconds) == "3"
