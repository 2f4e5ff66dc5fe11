"""What an option file asks for is done, refused, or said not to be done before the first iteration."""

from __future__ import annotations

import random
import re
import shutil
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.checks.checking import check_options
from dp_basicsr.options import override, read_options
from dp_basicsr.options.reading import parse_yaml
from dp_basicsr.utils.arguments import SHIPPED

import cv2
import numpy as np
import pytest
import yaml
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import METRIC_REGISTRY, MODEL_REGISTRY
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.support.fuzz import draws
from tests.support.options import SMALL
from tests.support.programs import code_of, logs_of, same_weights

BASE: dict[str, Any] = parse_yaml(SMALL, "SMALL")
VAL, SET = BASE.pop("val"), BASE["datasets"]["val_1"]
METRICS = VAL.pop("metrics")
BASE["datasets"] = {"train": BASE["datasets"]["train"] | {"num_worker_per_gpu": 0}}
BASE["train"] |= {
    "scheduler": BASE["train"]["scheduler"] | {"milestones": [3]},
    "perceptual_opt": None,
    "ema_decay": 0,
    "total_iter": 4,
}
BASE["logger"] |= {"use_tb_logger": False}


def draw(rng: random.Random) -> dict[str, Any]:
    """An option file whose sections are left out, misplaced, contradictory or right."""
    opt = deepcopy(BASE)
    opt["model_type"] = rng.choice(["PSNRModel", "ESRGANDPModel"])
    opt["train"] |= {"net_d_init_iters": rng.choice([0, 0, 2, 9])}
    opt["train"]["pixel_opt"]["loss_weight"] = rng.choice([0, 1e-2])
    opt["logger"] |= {"save_checkpoint_freq": rng.choice([2, 9]), "print_freq": rng.choice([1, 9]),
                      "keep_best": rng.random() < 0.6}  # fmt: skip
    for number in range(rng.choice([0, 1, 1, 2])):
        there = rng.random() < 0.6
        opt["datasets"][f"val_{number}"] = SET | {"name": f"set{number}"} | ({} if there else {"dataroot_gt": "no"})
    val = VAL | {"val_freq": rng.choice([2, 9]), "save_img": rng.random() < 0.5}
    if rng.random() < 0.7:
        val["metrics"] = METRICS
    if rng.random() < 0.75:
        home = rng.choice([opt] * 4 + [opt["train"], opt["datasets"]])
        home["val"] = val
    if rng.random() < 0.1:
        opt["metrics"] = METRICS
    return opt


def run(opt: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Train; return the exit code, and the log or the message."""
    shutil.rmtree("experiments", ignore_errors=True)
    Path("o.yml").write_text(yaml.safe_dump(opt, sort_keys=False))
    code = code_of(train.main, ["-opt", "o.yml"])
    return code, capfd.readouterr().err if code else logs_of()


def test_nothing_that_is_asked_for_is_silently_not_done(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a run leaves behind is compared with what its file asks for; whatever is not there was announced."""
    for rng in draws(8):
        opt = draw(rng)
        code, output = run(opt, capfd)
        text = yaml.safe_dump(opt)
        if code:
            misplaced = "val" in opt["train"] or "val" in opt["datasets"] or "metrics" in opt
            assert misplaced, output
            assert re.search(r"o\.yml:\d+: (train:val|datasets:val|metrics)", output), output
            continue
        said = "\n".join(re.findall(r"WARNING: (o\.yml:.*)", output.partition("\nValidation")[0]))
        images = list(Path("experiments/small").glob("visualization/*/*"))
        sets = {key: value for key, value in opt["datasets"].items() if key.startswith("val")}
        for key, dataset in sets.items():
            there = f"Validation {dataset['name']}" in output or bool(images)
            assert there or re.search(f"{key}: |there is no validation,|validation leaves nothing", said), text
        is_gan, late = opt["model_type"] == "ESRGANDPModel", opt["train"]["net_d_init_iters"] == 9
        # What the file asks for: whether the run did it, and how a note names it otherwise.
        done = {
            "there is no validation,|validation leaves nothing":
                "Validation" in output or bool(images) or not (sets or "val" in opt),
            "keep_best: no best": not opt["logger"]["keep_best"] or any(Path("experiments").rglob("net_g_best*")),
            "save_checkpoint_freq: no state": any(Path("experiments").rglob("*.state")),
            "print_freq: no losses": "l_pix: " in output or "l_d_real: " in output,
            "gan_opt: without effect": is_gan,
            "never updated": not (is_gan and late),
        }  # fmt: skip
        for note, happened in done.items():
            assert happened != bool(re.search(note, said)), (note, said, text, output)
        if is_gan and opt["logger"]["print_freq"] == 1:
            assert ("l_g_pix: " in output) != late
        models = Path("experiments/small/models")
        if (models / "net_g_2.pth").exists():
            untrained = same_weights(models / "net_g_2.pth", models / "net_g_latest.pth")
            assert untrained == bool(re.search("the generator is (never updated|not trained)", said)), (said, text)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (["model_type=PSNRModel", "train:perceptual_opt=~", "train:gan_opt=~"], "pixel_opt"),
        (["train:perceptual_opt:loss_weight=0", "train:gan_opt:loss_weight=0"], "pixel_opt and perceptual_opt and gan"),
        (["train:perceptual_opt:loss_weight=0"], ""),
        (["model_type=ESRGANModel", "train:channels_last=false",
          "train:gan_opt={type: GANLoss, gan_type: hinge, loss_weight: 0}",
          "train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}, perceptual_weight: 0}"],
         "pixel_opt and perceptual_opt and gan_opt"),
    ],
)  # fmt: skip
def test_losses_that_train_nothing_are_named(entries: list[str], named: str) -> None:
    opt, file = read_options(SHIPPED / "train_esrgan_dp.yml"), str(SHIPPED / "train_esrgan_dp.yml")
    override(opt, ["train:pixel_opt:loss_weight=0", *entries])
    notes = "\n".join(check_options(opt, file, [], is_train=True, may_miss_data=True).notes)
    assert (f"the generator is not trained: the weight of {named}" in notes) == bool(named), notes
    assert ("not trained" in notes) == bool(named)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        # Lightning#4668: the worst network was kept as the best one.
        ("val:metrics={own: {type: measure_own}}", "val:metrics:own: higher is taken as better"),
        ("val:metrics={own: {type: measure_own, better: higher}}", ""),
        ("val:metrics={psnr: {type: calculate_psnr, crop_border: 4}, gmsd: {type: piq/GMSDLoss, crop_border: 4}}", ""),
        # composer#1384
        ("train:scheduler={type: CosineAnnealingLR, T_max: 9}", "train:scheduler: the learning rate rises again after"),
        ("train:scheduler={type: CosineAnnealingLR, T_max: 400000}", ""),
        ("train:scheduler={type: PolynomialLR}", "train:scheduler: the learning rate is 0 after iteration 5, before"),
        # pytorch-image-models#188
        ("train:ema_decay=0.999999", "67% of the average are the first weights: 0.999988 leaves 1%"),
        ("train:perceptual_opt:static_weight=0.7", "static_weight: without effect, because dynamic_weighting is true"),
        # DiffBIR#161: good figures, and other results from one's own weights
        (
            "datasets:train:mean=[0.5, 0.5, 0.5] and datasets:train:std=[1, 1, 1]",
            "datasets:train:mean: validation, test and upscale do not",
        ),
        ("datasets:train:mean=[0] and datasets:train:std=[1]", ""),
        ("datasets:val_1:gt_size=32", "datasets:val_1:gt_size: without effect: whole images are measured"),
        ("datasets:train:num_worker_per_gpu=999", "num_worker_per_gpu: more workers than "),
        (
            "datasets:val_1:dataroot_gt=x and datasets:val_1:dataroot_lq=./x/",
            "datasets:val_1:dataroot_lq: the folder of the GT, which are their own LQ",
        ),
        ("name=${USER}_run", "name: $ is no variable here: the folders are called so"),  # omegaconf#396
        # albumentations#1698
        (
            "datasets:train={name: x, type: RealESRGANDataset, batch_size_per_gpu: 1, gt_size: 128, "
            "num_worker_per_gpu: 0, dataroot_gt: ., io_backend: {type: disk}, blur_kernel_size: 15}"
            " and model_type=Degrading",
            "datasets:train:blur_kernel_size: without effect: RealESRGANDataset draws kernels of 7 to 21 pixels",
        ),
        (
            "datasets:train={name: x, type: RealESRGANDataset, batch_size_per_gpu: 1, gt_size: 128, "
            "num_worker_per_gpu: 0, dataroot_gt: ., io_backend: {type: disk}} and model_type=Degrading and gt_size=64",
            "datasets:train:gt_size: without effect: patches have the gt_size of the first level, 64",
        ),
    ],
)
def test_what_a_class_takes_for_granted_is_named(entry: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "measure_own", lambda img, img2, **_: 1.0)
    # A model that may make the LQ, which RealESRGANDataset does not have.
    degrading = type("Degrading", (MODEL_REGISTRY.get("ESRGANDPModel"),), {"__module__": "foreign"})
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "Degrading", degrading)
    opt, file = read_options(SHIPPED / "train_esrgan_dp.yml"), str(SHIPPED / "train_esrgan_dp.yml")
    override(opt, ["datasets:val_1:dataroot_gt=.", "datasets:val_1:dataroot_lq=.", *entry.split(" and ")])
    notes = "\n".join(check_options(opt, file, [], is_train=True, may_miss_data=True).notes)
    unsaid = not any(word in notes for word in ("better", "learning rate", "undo"))
    assert said in notes if said else unsaid, notes


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["val:patience=3", "val:monitor=not_there/psnr_rgb"], "patience: the training does not end early, because "),
        (["val:patience=3", "val:monitor=[]"], "patience: the training does not end early, because there is no figure"),
        (["val:patience=3", "val:monitor=[not_there/psnr_rgb, there/psnr_rgb]"], ""),
        (["val:patience=3", "val:monitor=psnr_rgb"], ""),
        (["val:patience=3"], ""),
        (["val:monitor=psnr_rgb"], "monitor: without effect, because there is no val: patience"),
        (["val:min_delta=0.1"], "min_delta: without effect, because there is no val: patience"),
    ],
)
def test_a_patience_that_watches_nothing_is_named(entries: list[str], said: str, pairs: Path) -> None:
    """The set that is watched is not there: the run ended as if its network did not improve."""
    opt = parse_yaml(SMALL, "o.yml")
    override(opt, entries)
    notes = re.findall("val:(?:patience|monitor|min_delta): .*", "\n".join(check_options(opt, "o.yml", [], True).notes))
    assert len(notes) == bool(said)
    assert not said or f"val:{said}" in notes[0]


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 3), (8, 8, 4)])
def test_images_of_16_bits_are_named(size: tuple[int, ...], pairs: Path) -> None:
    """dcscn-super-resolution#32: training reads 8 of them, so 12 bits of a camera became 4."""
    for dtype in (np.uint8, np.uint16):
        cv2.imwrite("pairs/GT/a.png", np.zeros(size, dtype))
        notes = "\n".join(check_options(parse_yaml(SMALL, "o.yml"), "o.yml", [], is_train=True).notes)
        assert ("train:dataroot_gt: of 16-bit images the upper 8 bits are read" in notes) == (dtype == np.uint16)
        assert "dataroot_lq: of 16-bit" not in notes


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_PRIMARIES = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
SWAPPED = SRGB.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def with_profile(profile: bytes) -> Image.Image:
    image = Image.new("RGB", (8, 8), (9, 99, 199))
    image.info["icc_profile"] = profile
    return image


def with_chunk(name: bytes, content: bytes) -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.info["pnginfo"] = PngInfo()
    image.info["pnginfo"].add(name, content)
    return image


def with_key(mode: str = "L") -> Image.Image:
    image = Image.new(mode, (8, 8))
    image.info |= {"pnginfo": None, "transparency": 0 if mode == "L" else (0, 0, 0)}
    return image


@pytest.mark.parametrize("part", ["train", "test_1"])
@pytest.mark.parametrize(
    ("image", "said"),
    [
        # vlfeat/matconvnet#91: OpenCV ignores its profile, which upscaling follows.
        (Image.new("CMYK", (8, 8)), "of CMYK images the colour profile is ignored: convert them to RGB"),
        (Image.new("RGBA", (8, 8)), "of images with alpha the colours alone are read"),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 255)), ""),
        (with_key("RGB"), "of images with alpha the colours alone are read"),
        # ComfyUI#11101: a test's results were shown in other colours than its images.
        (
            with_profile(SWAPPED),
            "a profile, gamma or primaries other than sRGB's are neither read nor kept: convert images to sRGB",
        ),
        (with_profile(SRGB), ""),
        # libjxl#1579: a PNG's gamma, of which the result was darker.
        (with_chunk(b"gAMA", struct.pack(">I", 100_000)), "a profile, gamma or primaries other than sRGB's"),
        (with_chunk(b"gAMA", struct.pack(">I", 45_455)), ""),
        (with_chunk(b"cHRM", struct.pack(">8I", *SRGB_PRIMARIES[:4], 21_000, 71_000, 15_000, 6_000)), "a profile"),
        (with_chunk(b"cHRM", struct.pack(">8I", *SRGB_PRIMARIES)), ""),
        (with_chunk(b"cICP", b"\x0c\x0d\0\1"), "a profile, gamma or primaries other than sRGB's are neither"),
        (with_chunk(b"cICP", b"\1\x0d\0\1"), ""),
        (with_key(), "of gray with a transparent value the gray alone is read: flatten it"),
    ],
)
def test_what_is_not_read_of_an_image_is_named(part: str, image: Image.Image, said: str, pairs: Path) -> None:
    image.save("pairs/GT/a.png" if "pnginfo" in image.info else "pairs/GT/a.tif", **image.info)
    opt = parse_yaml(SMALL, "o.yml")
    Path("n.pth").touch()
    opt["path"]["pretrain_network_g"] = "n.pth"
    notes = "\n".join(check_options(opt, "o.yml", [], is_train=part == "train").notes)
    assert f"{part}:dataroot_gt: {said}" in notes if said else "dataroot" not in notes


def test_a_georeference_that_results_of_a_test_lose_is_named(pairs: Path) -> None:
    """weecology/DeepForest#247: results are PNG files."""
    opt = parse_yaml(SMALL, "o.yml")
    Path("n.pth").touch()
    opt["path"]["pretrain_network_g"] = "n.pth"
    lq = Path(opt["datasets"]["test_1"]["dataroot_lq"])
    for tags in ({}, {34735: (1, 1, 0, 0)}):
        Image.new("L", (8, 8)).save(lq / "a.tif", tiffinfo=tags)
        notes = "\n".join(check_options(deepcopy(opt), "o.yml", [], is_train=False).notes)
        assert ("test_1:dataroot_lq: results are saved without the georeference" in notes) == bool(tags), notes


def test_a_skipped_set_is_said_to_differ_in_unicode_s_form_alone(pairs: Path) -> None:
    """The sibling of paperbanana#240 in a set to validate on, of which `data lr` was to make a second folder."""
    opt = parse_yaml(SMALL, "o.yml")
    Path("pairs/caf\u00e9").mkdir()
    opt["datasets"]["val_1"]["dataroot_lq"] = "pairs/cafe\u0301"
    notes = "\n".join(check_options(opt, "o.yml", [], is_train=True).notes)
    assert "no such folder: pairs/cafe\u0301; names that look alike differ in Unicode's form" in notes
    assert "makes it" not in notes


def test_a_model_that_keeps_no_best_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our loop does for our models only; another package's ended in an AttributeError at its first validation."""

    class Other(BaseModel):
        pass

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "Other", Other)
    opt, file = read_options(SHIPPED / "train_esrgan_dp.yml"), str(SHIPPED / "train_esrgan_dp.yml")
    override(opt, ["model_type=Other", "logger:keep_best=true", "val:patience=3"])
    notes = "\n".join(check_options(opt, file, [], is_train=True, may_miss_data=True).notes)
    for text in ("logger:keep_best: no best network is kept", "val:patience: the training does not end early"):
        assert f"{text}, because there is no" in notes, notes
