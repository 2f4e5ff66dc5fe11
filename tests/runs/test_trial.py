"""`train.py --check`: reports problems, tries a step, estimates the cost, and writes nothing."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from dp_basicsr import train
from dp_basicsr.archs import RRDBNetDP, VGGFeatures, pretrained
from dp_basicsr.errors import UserError
from dp_basicsr.runs import trial
from dp_basicsr.runs.limits import build_run_model
from dp_basicsr.runs.training import refuse_other_patches

import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from PIL import Image

from tests.support.networks import SmallDiscriminator
from tests.support.options import model_options, write_small_gan
from tests.support.programs import code_of

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(pairs: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """A function that checks a small run, which writes nothing: exit code, output and errors."""
    write_small_gan()

    def run(*entries: str) -> tuple[int, str, str]:
        before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
        code = code_of(train.main, ["-opt", "small.yml", "--check", *(["--force_yml", *entries] if entries else [])])
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
        return code, *capsys.readouterr()

    return run


def test_a_valid_run(check: Check) -> None:
    code, out, err = check("train:net_d_init_iters=3")
    assert (code, err) == (0, "")
    assert "one step of SRGANDPModel on 2 pairs of the set's 4 (lq 2 x 3 x 8 x 8)" in out
    for words in ("l_g_percep", "l_d_fake", "s per iteration", "for 7 iterations", "GiB", "the paper's is 16"):
        assert words in out
    assert out[out.index("small: one step") :].count("\n") == 5


def test_a_slow_step_is_tried_once(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """SRFormer's own option file tried for minutes on a CPU, without a word."""
    clock = itertools.count(step=25)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    code, out, _ = check()
    assert (code, next(clock)) == (0, 4 * 25), "two to load a batch, two for a step"
    assert "25 s per iteration" in out


def test_what_a_start_warns_of_is_noted(check: Check) -> None:
    """Of weights that fit in part, and of an empty validation set (Real-ESRGAN#703)."""
    torch.save({"params": {"conv_first.weight": torch.zeros(8, 3, 3, 3)}}, "other.pth")
    Path("empty/cats").mkdir(parents=True)  # mmpretrain#869
    val = "{name: none, type: PairedImageDataset, dataroot_gt: empty, dataroot_lq: empty, io_backend: {type: disk}}"
    path = "path={pretrain_network_g: other.pth, strict_load_g: false}"
    code, out, _ = check(path, f"datasets:val={val}", "val={val_freq: 1, save_img: true}")
    assert code == 0
    assert re.search(r"note: +other.pth: 1 of \d+ tensors of \w+ are loaded, the others keep their random start", out)
    assert re.search(
        r"note: +none is skipped: no image directly in empty: .* name one \(empty/cats\), list what is", out
    )


def test_frozen_weights_are_no_notes(check: Check) -> None:
    """BasicSR warns of each."""
    alone = ("network_d=~", "train:gan_opt=~", "train:optim_d=~")
    code, out, _ = check("model_type=PSNRModel", *alone, "train:freeze=[body.*]")
    assert code == 0
    assert "note:" not in out


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_pairs_that_exif_turns_against_each_other_are_refused(
    arguments: list[str], pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """detectron2#5366 (sibling): by 180 degrees, or square, they trained without a word."""
    write_small_gan()
    exif = Image.Exif()
    exif[0x0112] = 3
    for folder in ("GT", "LRbicx4"):
        Image.open(path := pairs / folder / "image2.png").save(path, exif=exif if folder == "GT" else None)
    assert code_of(train.main, ["-opt", "small.yml", *arguments]) == 2
    said = r"image2.png: its LQ is rotated clockwise by 180 degrees; the EXIF orientation of .*data check"
    assert re.search(said, capsys.readouterr().err)


def test_what_is_not_finite_is_told_with_the_files(check: Check, caplog: pytest.LogCaptureFixture) -> None:
    assert check("train:optim_g:lr=1e30", "train:max_nonfinite=1")[0] == 2
    assert "l_g_pix, " in caplog.text
    assert "not finite, the step is skipped; batch: pairs/GT/image" in caplog.text


def test_the_estimate_works_without_data(check: Check) -> None:
    code, out, err = check("datasets:train:dataroot_gt=nowhere", "path={pretrain_network_g: no.pth}")
    assert code == 2
    assert "on 2 random pairs (lq 2 x 3 x 8 x 8)" in out
    assert "'nowhere': no such folder" in err
    assert "'no.pth': no such file" in err
    Path("pairs/GT/image1.png").unlink()
    code, out, err = check()
    assert code == 2
    assert "on 2 random pairs" in out
    assert "datasets: pairs" in err


def test_a_missing_tensorboard_is_known_before_the_run(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert check()[::2] == (2, "error: tensorboard is not installed: pip install tensorboard\n")


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_broken_logger_is_known_before_the_run(package: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """rf-detr#844: installed, but its import fails."""
    folder = Path("broken", package).absolute()
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise TypeError('Descriptors')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what the check leaves behind is compared
    monkeypatch.delitem(sys.modules, package, raising=False)
    code, _, err = check("logger:wandb={project: x}")
    assert code == 2
    said = rf"error: {package}.* is installed, but cannot be used \(TypeError: Descriptors\): pip install"
    assert re.match(said, err)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train:total_itr=3", "did you mean total_iter"),
        ("train:optim_g:lr=1e30", "not finite"),
        ("path={pretrain_network_g: small.yml}", "cannot be read"),
        ("datasets:train:gt_size=36", "gt_size: expected patches that network_d takes, such as 40, got 36"),
    ],
)
def test_problems_are_one_message(entry: str, message: str, check: Check) -> None:
    code, _, err = check(entry)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


SWINIR = "img_size: 8, window_size: 4, depths: [2], embed_dim: 8, num_heads: [2], upsampler: pixelshuffle"
SMALL_G = "num_feat: 4, num_block: 1, num_grow_ch: 4"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (  # ShadowFormer#27: windows of 4 pixels, a patch of 6
            [f"network_g={{type: SwinIR, upscale: 4, {SWINIR}}}", "datasets:train:gt_size=24", "network_d:num_feat=4"],
            "datasets: train: gt_size: expected patches that network_g takes, such as 32, got 24",
        ),
        (  # BasicSR#222: three strides of 2, a patch of 30
            [f"network_g={{type: RRDBNetDP, scale: 3, {SMALL_G}}}", "scale=3", "datasets:train:gt_size=30"],
            "datasets: train: gt_size: expected patches that network_d takes, such as 24, got 30",
        ),
        (  # mseitzer/srgan#9: BasicSR's RRDBNet makes x4 of every scale but 1 and 2
            [f"network_g={{type: RRDBNet, num_in_ch: 3, num_out_ch: 3, scale: 8, {SMALL_G}}}", "scale=8"],
            "network_g: expected a network that enlarges 8 times, got one that enlarges 4 times: RRDBNet may not have",
        ),
        (  # BasicSR#395: a discriminator of several scales
            ["network_d={type: SeveralLogits}"],
            "network_d: expected one tensor of its forward, got a list: join them, torch.cat(",
        ),
        (  # lightly-train#29: a transformer for one size, or a loss for large images
            ["train:perceptual_opt:extra_terms=[{type: LargeLoss, mu: 1.0}]"],
            "gt_size: expected patches that perceptual_opt: LargeLoss takes, such as 40, got 32 (ValueError: small ("
            f"{__file__}:",
        ),
        (
            ["network_d={type: BrokenLogits}"],
            "network_d: expected a forward that takes patches of some gt_size up to 64, got KeyError: ",
        ),
        (
            [f"network_g={{type: SwinIR, upscale: 4, {SWINIR.replace('heads: [2]', 'heads: [3]')}}}"],
            "network_g:embed_dim: expected a multiple of each of num_heads ([3]), got 8",
        ),
        (
            ["network_g={type: SRVGGNetCompact, num_in_ch: 3, num_out_ch: 3, act_type: swish}"],
            "network_g: expected arguments that SRVGGNetCompact takes, got {'num_in_ch': 3, ",
        ),
        (
            ["network_d={type: EDSR, num_in_ch: 3, num_out_ch: 3, rgb_mean: [0.5]}"],
            "edsr_arch.py:42); its arguments by default: (num_in_ch, num_out_ch, num_feat=64, ",
        ),
        (
            ["network_g={type: SeveralImages, scale: 4, num_feat: 4, num_block: 1, num_grow_ch: 4}"],
            "network_g: expected one tensor of its forward, got a list",
        ),
    ],
)
def test_a_patch_that_the_networks_do_not_take_is_refused_first(
    entries: list[str], message: str, check: Check, refused: Callable[..., str]
) -> None:
    assert message in check(*entries)[2]
    # The pairs are x4; their sizes are read when the first batch is.
    assert message in refused(train.main, ["-opt", "small.yml", "--force_yml", *entries])
    assert not Path("experiments").exists()


def test_an_error_of_the_model_itself_is_no_network_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp_basicsr.runs.limits.build_model", lambda opt: opt["theirs"])
    others: list[Any] = [None, 0.5, {"width": 8}, {"type": "Nowhere"}, {"type": "RRDBNetDP", "theirs": 8}]
    for other in others:
        with pytest.raises(KeyError, match="theirs"):
            build_run_model(model_options("PSNRModel", Path()) | {"network_d": other})


def test_arguments_that_a_loss_refuses_are_told_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other packages: their signature may take any."""

    class Picky(torch.nn.Module):
        def __init__(self, loss_weight: float = 1.0, **others: Any) -> None:
            super().__init__()
            if others:
                raise TypeError(f"not known: {', '.join(others)}")

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Picky", Picky)
    picky = {"type": "Picky", "loss_weigth": 0.1}
    said = r"train: pixel_opt: expected arguments that Picky takes, got {'loss_weigth': 0.1}: TypeError: not known: "
    with pytest.raises(UserError, match=said + r"loss_weigth \(.*; its arguments by default: \(loss_weight: "):
        build_run_model(model_options("PSNRModel", Path(), pixel_opt=picky, perceptual_opt=None))


def test_networks_that_take_the_patch_pass(check: Check) -> None:
    """At x1, where BasicSR's RRDBNet folds 4 pixels into one and D's patch is the generator's."""
    network = f"network_g={{type: RRDBNet, num_in_ch: 3, num_out_ch: 3, scale: 1, {SMALL_G}}}"
    assert check(network, "scale=1", "datasets:train:dataroot_lq=pairs/GT")[0] == 0
    assert "such as 40, got 36" in check(network, "scale=1", "datasets:train:gt_size=36")[2]


def test_trying_a_patch_leaves_networks_as_they_are(tmp_path: Path) -> None:
    """It is no step: nothing is compiled, no statistics move, and what is in eval mode stays so."""
    opt = model_options("ESRGANDPModel", tmp_path)
    model = build_model(opt)
    opt["datasets"] = {"train": {"type": "PairedImageDataset", "gt_size": 32}}
    nets = [model.net_g, model.net_d]
    for net in nets:
        next(module for module in net.modules() if not list(module.children())).eval()
        net._compiled_call_impl = lambda *_: pytest.fail("compiled")

    def seen() -> list[object]:
        return [[module.training for net in nets for module in net.modules()],
                [value.tolist() for net in nets for value in net.state_dict().values()]]  # fmt: skip

    before = seen()
    refuse_other_patches(model, opt)
    assert seen() == before
    model.net_g.forward = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):  # which is told with the options that help
        refuse_other_patches(model, opt)


@LOSS_REGISTRY.register()
class LargeLoss(torch.nn.L1Loss):
    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] < 40:
            raise ValueError("small")
        return super().forward(x, gt)


@ARCH_REGISTRY.register()
class BrokenLogits(SmallDiscriminator):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise KeyError("no size")


@ARCH_REGISTRY.register()
class SeveralImages(RRDBNetDP):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        return [super().forward(x)] * 2


@ARCH_REGISTRY.register()
class SeveralLogits(SmallDiscriminator):
    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        return [super().forward(image)] * 2


def out_of_memory(*_: object) -> NoReturn:
    raise torch.OutOfMemoryError


def test_a_state_of_another_training_is_known(check: Check) -> None:
    """SRGAN-PyTorch#49: a GAN resumed from the state of its L1 training."""
    options = ["-opt", "small.yml", "--force_yml", "name=first", "train:total_iter=4", "logger:save_checkpoint_freq=4"]
    assert code_of(train.main, options) == 0
    state = torch.load("experiments/first/training_states/4.state", weights_only=True)
    Path("experiments/first/training_states/4.sha256").unlink()
    torch.save(state | {"optimizers": state["optimizers"][:1]}, "experiments/first/training_states/4.state")
    code, _, err = check("path={resume_state: experiments/first/training_states/4.state}")
    assert code == 2
    assert "has 1 optimizer(s), SRGANDPModel has 2" in err
    assert err.endswith("/models/net_g_4.pth\n")


def test_other_frozen_weights_than_the_state_s_are_known(check: Check) -> None:
    """mli0603/stereo-transformer#58: other layers are to be trained when a run resumes."""
    options = ["-opt", "small.yml", "--force_yml", "train:total_iter=2", "logger:save_checkpoint_freq=2"]
    assert code_of(train.main, [*options, "train:freeze=[body.*]"]) == 0
    code, _, err = check("path={resume_state: experiments/small/training_states/2.state}")
    assert code == 2
    assert "freeze: expected ['body.*'], as in the state of iteration 2, got []" in err
    assert err.endswith("/models/net_g_2.pth\n")


def test_networks_that_do_not_fit_the_state_s_are_known(check: Check) -> None:
    """Leffa#31: another discriminator for larger patches, in the middle of a run."""
    options = ["-opt", "small.yml", "--force_yml", "train:total_iter=2", "logger:save_checkpoint_freq=2"]
    assert code_of(train.main, options) == 0
    code, _, err = check("network_d:num_feat=8", "path={resume_state: experiments/small/training_states/2.state}")
    assert code == 2
    assert "net_d_2.pth does not match: " in err
    assert err.endswith("; a new run with path:pretrain_network_g alone begins a discriminator anew\n")
    code, _, err = check("path={pretrain_network_d: experiments/small/models/net_g_2.pth, strict_load_d: false}")
    assert code == 2
    assert "(nothing fits, not even with path: strict_load_d: false); a new run with path:pretrain_network_g" in err


def test_what_the_machine_lacks_is_known(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdetection#1997: /dev/shm of a container; pytorch#92745: torch.compile without a compiler."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda disk: SimpleNamespace(free=10_000 if disk == "/dev/shm" else 10**9)
    )
    code, out, _ = check("datasets:train:num_worker_per_gpu=3")
    assert code == 0
    assert "/dev/shm has 0 MB free, the batches of 3 workers take 0: docker run --shm-size" in out
    assert "/dev/shm" not in check("datasets:train:num_worker_per_gpu=0")[1]

    def compiler(*_: object) -> NoReturn:
        raise RuntimeError("No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", compiler)
    code, _, err = check("train:compile=true")
    assert code == 2
    assert "torch.compile does not work here (RuntimeError: No working C++ compiler found): install" in err
    assert code_of(train.main, ["-opt", "small.yml", "--force_yml", "train:compile=true"]) == 2
    assert not Path("experiments/small").exists()


def test_a_state_of_another_optimizer_is_known(
    check: Check, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """ultralytics#9815."""
    assert code_of(train.main, ["-opt", "small.yml", "--force_yml", "train:total_iter=3"]) == 0
    options = ["-opt", "small.yml", "--auto_resume", "--check"]
    assert code_of(train.main, [*options, "--force_yml", "train:optim_g:lr=1e-5"]) == 0
    assert "note:   The checkpoint and the option file differ" in capsys.readouterr().out
    message = "the state of iteration 3 does not fit these options .*: resume with the options it was saved with"
    assert re.search(message, refused(train.main, [*options, "--force_yml", "train:optim_g={type: SGD, lr: 1e-3}"]))


def test_a_run_of_another_user_that_cannot_be_written_is_known(
    check: Check, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """dvc#2287: a team's folder under umask 022."""
    models = Path("experiments/small/models")
    models.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(models, 54321, -1)  # has no name
    monkeypatch.setattr(os, "access", lambda path, mode: "models" not in str(path))
    said = refused(train.main, ["-opt", "small.yml", "--auto_resume", "--check"])
    assert re.search(f"models belongs to user {models.stat().st_uid}, .*umask 002", said)
    assert check()[0] == 0


def test_a_disk_without_room_for_a_checkpoint_is_known(
    check: Check, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """mlfoundations/open_lm#154: found at the first save, hours later. No disk that suffices is refused."""
    entries = ["logger:save_checkpoint_freq=7", "train:ema_decay=0.5"]
    assert code_of(train.main, ["-opt", "small.yml", "--force_yml", "name=first", *entries]) == 0
    files = [*Path("experiments/first/models").iterdir(), *Path("experiments/first/training_states").iterdir()]
    taken = sum(file.stat().st_size for file in files if "latest" not in file.name)
    for free, code in ((taken, 0), (taken // 2, 2)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert check(*entries)[0] == code
    said = refused(train.main, ["-opt", "small.yml", "--force_yml", *entries])
    assert re.search(r"error: .*: its disk has \d.* MB free, a checkpoint takes \d.*: make room", said)
    assert not Path("experiments/small").exists()


def test_imagenet_weights_are_not_downloaded(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial uses the weights that are there, and names those that the run would download, or cannot."""
    weights = ["train:perceptual_opt:vgg_weights=imagenet", "train:perceptual_opt:resnet_weights=imagenet"]
    terms = "[{network: squeezenet1_1, layer_weights: {features.3: 1}}, {type: LPIPSLoss, net: alex}]"
    extra = f"train:perceptual_opt:extra_terms={terms}"
    with monkeypatch.context() as patch:
        patch.setenv("TORCH_HOME", "small.yml/cache")
        patch.setattr(Path, "exists", lambda path: path.lstat() and True)  # raises, as in a folder of another user
        code, out, err = check(*weights, extra)
    assert code == 2
    assert "will download" not in out
    cannot = (
        "the ImageNet weights of (.*) are missing, and small.yml/cache/hub/checkpoints cannot be written: set TORCH"
    )
    assert re.findall(cannot, err) == ["vgg11", "resnet18", "squeezenet1_1", "alexnet"]
    here = Path(torch.hub.get_dir(), "checkpoints", pretrained.weights_url("vgg11").rsplit("/", 1)[1])
    here.parent.mkdir(parents=True)
    torch.save(VGGFeatures(["conv2_1"], "vgg11", "random").net.state_dict(), here)
    assert "the run will download" not in check(weights[0])[1]
    damaged = Path("damaged.pth")
    damaged.write_bytes(here.read_bytes()[:-9])
    for file, message in (
        (damaged, "model damaged.pth cannot be read"),
        ("nowhere.pth", "vgg_weights: expected a file, got"),
    ):
        code, _, err = check(f"train:perceptual_opt:vgg_weights={file}")
        assert code == 2
        assert message in err


def test_basicsr_s_perceptual_loss_needs_no_download(check: Check, refused: Callable[..., str]) -> None:
    loss = "train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv1_1: 1}, vgg_type: vgg11}"
    code, out, err = check(loss)
    assert (code, err) == (0, "")
    assert "the ImageNet weights of vgg11 are missing: the run will download them first" in out
    error = refused(train.main, ["-opt", "small.yml", "--force_yml", loss])
    assert "the ImageNet weights of vgg11 were not found and could not be downloaded" in error
    assert "experiments/pretrained_models/ " in error
    assert not Path("experiments").exists()


def test_durations() -> None:
    shown = [trial.duration(seconds) for seconds in (59, 119, 120, 7200, 4.4e6)]
    assert shown == ["59 seconds", "119 seconds", "2.0 minutes", "2.0 hours", "50.9 days"]


def test_batches_of_several_processes() -> None:
    data: dict[str, Any] = {"batch_size_per_gpu": 4}
    opt = {"model_type": "ESRGANDPModel", "datasets": {"train": data}, "dist": False, "num_gpu": 2, "world_size": 1}
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


def test_a_validation_that_works_is_tried(check: Check) -> None:
    add_validation()
    assert check()[::2] == (0, "")
    add_validation(type="SingleImageDataset", dataroot_gt=None, meta_info_file=None)
    assert check()[::2] == (0, "")
    assert check("model_type=SRModel")[::2] == (0, "")


def test_a_validation_that_would_fail_hours_later_is_refused(check: Check) -> None:
    shutil.copytree("pairs/LRbicx4", "few")
    Path("few/image0.png").write_bytes(b"rubbish")
    add_validation(dataroot_lq="few")
    code, _, err = check()
    assert code == 2
    assert "image0.png" in err
    Path("few/image0.png").unlink()
    code, _, err = check()
    assert code == 2
    assert "different number of images" in err
