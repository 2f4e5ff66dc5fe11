"""All problems of an option file are found before anything is written, each with its line and a hint."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from dp_basicsr.checks.checking import STOCK_KEYS, check_options, find_problems
from dp_basicsr.errors import UserError
from dp_basicsr.losses import DPLoss
from dp_basicsr.options import override, read_options
from dp_basicsr.options.reading import IN_SINGLE_QUOTES
from dp_basicsr.studies.runner import make_jobs
from dp_basicsr.studies.study import read_smoke, read_study

import pytest
from basicsr.losses.basic_loss import PerceptualLoss
from basicsr.models.base_model import BaseModel
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

from tests.support.options import REAL_ESRGAN_KERNELS, parse_options

OPTIONS = Path(__file__).resolve().parents[2] / "options"
TRAIN = OPTIONS / "train_esrgan_dp.yml"
DEMO = OPTIONS / "train_demo.yml"


def problems(*entries: str, file: Path = TRAIN, is_train: bool = True) -> list[str]:
    """Return the problems of an option file after some overrides, except missing data."""
    opt = read_options(file)
    override(opt, entries)
    every = find_problems(opt, is_train, {entry.partition("=")[0] for entry in entries})
    return [f"{':'.join(map(str, problem.path))}: {problem.text}" for problem in every if not problem.missing]


def refusal(argv: list[str], is_train: bool = True) -> str:
    """The message with which a program refuses its options."""
    with pytest.raises(UserError) as caught:
        parse_options(argv, is_train)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(path.name for path in OPTIONS.glob("*.yml")))
def test_the_shipped_files_are_valid(file: str) -> None:
    assert problems(file=OPTIONS / file, is_train=file.startswith("train")) == []
    assert problems(file=OPTIONS / file, is_train=False) == []


TERMS = "train:perceptual_opt:extra_terms"


def test_terms_and_references_that_work_pass() -> None:
    terms = "[{type: LPIPSLoss, mu: 1.0, net: alex, name: lpips, eps: 0}, {type: CharbonnierLoss, eps: 1e-6}, "
    terms += "{network: timm/vit_small_patch16_224.dino, layer_weights: {blocks.5: 1}, mu: 2.0}, "
    terms += "{network: convnext_tiny, layer_weights: {features.3: 1}, weights: random, max_weight: ~}]"
    assert problems(f"{TERMS}={terms}", "train:perceptual_opt:reference=lpips") == []
    assert problems("train:perceptual_opt:vgg_layer_weights={}", "train:perceptual_opt:reference=resnet") == []


def test_all_other_keys_of_the_stock_loss_are_dp_loss_s_too() -> None:
    stock, ours = (set(inspect.signature(kind.__init__).parameters) for kind in (PerceptualLoss, DPLoss))
    assert stock - ours == STOCK_KEYS.keys()


def test_gray_training_needs_one_channel_everywhere() -> None:
    gray = ["datasets:train:color=y", "network_g:num_in_ch=1", "network_g:num_out_ch=1", "network_d:num_in_ch=1"]
    sets = [f"datasets:val_{number}:color" for number in (1, 2, 3, 4)]
    repeat = "train:perceptual_opt:input_channels=repeat"
    assert [text.partition(": ")[0] for text in problems(*gray, repeat)] == sets
    gray += [f"{key}=y" for key in sets]
    assert problems(*gray, repeat) == []
    swinir = "network_g={type: SwinIR, upscale: 4, in_chans: 1}"  # its name for it, and HAT's
    assert problems(*gray[:1], swinir, *gray[3:], repeat) == []
    assert re.match(r"train:perceptual_opt:input_channels: expected repeat", "".join(problems(*gray)))
    texts = problems(*gray[1:4], repeat, *gray[4:])
    assert [text.partition(": ")[0] for text in texts] == [
        "network_g:num_in_ch", "network_g:num_out_ch", "network_d:num_in_ch", "train:perceptual_opt:input_channels",
    ]  # fmt: skip
    # BasicSR's give colours, and do not read the key.
    for kind in ("RealESRGANDataset", "RealESRGANPairedDataset"):
        texts = problems(*gray, f"datasets:train:type={kind}")
        assert any(re.match("datasets:train:color: expected none.*PairedImageDataset does", text) for text in texts)
        assert any(text.startswith("network_g:num_in_ch: expected 3") for text in texts)


@pytest.mark.parametrize(
    ("model", "refused"),
    [("ESRGANDPModel", False), ("SRGANDPModel", False), ("RealESRGANModel", False), ("PSNRModel", True),
     ("ESRGANModel", True), ("SRModel", True)],
)  # fmt: skip
def test_ldl_is_accepted_by_the_models_that_compute_it(model: str, refused: bool) -> None:
    entries = [f"model_type={model}", "train:ldl_opt={type: LDLLoss}", "train:ema_decay=0.9"]
    assert any(text.startswith("train:ldl_opt: expected none") for text in problems(*entries)) == refused


def test_every_misspelt_key_is_named() -> None:
    """The last letter of each key in turn is doubled; sets, metrics and layers have names of the user's choice."""
    free = ("datasets", "metrics", "vgg_layer_weights", "resnet_layer_weights")
    opt = read_options(TRAIN)
    paths: list[tuple[str, ...]] = [()]
    for path in paths:
        section = reduce(getitem, path, opt)
        for key in section if isinstance(section, dict) else ():
            paths.append((*path, key))
            if key == "type" or path[-1:] in [(name,) for name in free]:
                continue
            wrong, changed = f"{key}{key[-1]}", deepcopy(opt)
            inner = reduce(getitem, path, changed)
            inner[wrong] = inner.pop(key)
            (text,) = [problem.text for problem in find_problems(changed, True) if problem.path == (*path, wrong)]
            assert re.match(rf"expected a known key, .*(did you mean {key}\?|there are: .*\b{key}\b)", text)
    assert len(paths) > 100


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        # keys
        ("path:x_anything=a", "path:x_anything: .*there are: pretrain_network_g"),
        ("train:use_shuffle=true", "train:use_shuffle: expected a known key"),
        ("train:fft_opt={type: FFTLoss}", "train:fft_opt: .* one of its extra_terms"),
        ("datasets:train:dataroot_GT=a", "datasets:train:dataroot_GT: .*did you mean dataroot_gt"),  # mmagic#60
        ("train:iters=3", "train:iters: expected a known key, got one that no code reads(?!.*gt_size)"),
        ("auto_resume=true", "auto_resume: .*no code reads; --auto_resume on the command line"),  # detectron2#2145
        ("train:resume_from=5.state", "train:resume_from: .*or path: resume_state$"),
        ("trian:total_iter=3", "trian: expected a known key, .*did you mean train"),
        ("train:perceptual_opt:layer_weights={conv5_4: 1}", "expected vgg_layer_weights with the same layers"),
        ("train:perceptual_opt:perceptual_weight=0.1", "expected loss_weight, got a key of PerceptualLoss"),
        # names
        ("name=a/b", "name: expected the name of a folder or file, got 'a/b'"),
        # Lightning#4012: it becomes part of the best network's file name.
        ("val:metrics={quality/psnr: {type: calculate_psnr, crop_border: 4}}",
         "val:metrics.*: expected the name of a folder or file, got 'quality/psnr'"),
        ("model_type=5", "model_type: expected text, got 5; put it into quotes"),
        ("datasets:train:dataroot_gt=[a, b]", r"dataroot_gt: expected text, got \['a', 'b'\]; put links to the files"),
        ("network_g={type: DAT}", "expected a network, got 'DAT'; there are: .*RRDBNetDP.*; FromFile trains"),
        ("name=..", "name: expected the name of a folder"),
        (f"name={'x' * 201}", "name: expected the name of a folder or file, of at most 200 bytes, got"),
        ("datasets:val_1:name=../../x", "datasets:val_1:name: expected the name of a folder"),
        ("val:suffix=../x", "val:suffix: expected the name of a folder"),
        ("model_type=ESRGANDP", "model_type: expected a model, got 'ESRGANDP'; did you mean ESRGANDPModel"),
        ("model_type=DATModel", "model_type: expected a model, got 'DATModel'; there are: .* .--import MODULE adds"),
        ("model_type=SRModle", "model_type: .*did you mean SRModel"),
        ("network_g:type=RRDBNett", "network_g:type: expected a network, .*RRDBNet"),
        ("train:optim_g:type=Adma", "train:optim_g:type: expected an optimizer, .*did you mean Adam"),
        ("train:scheduler:type=StpLR", "train:scheduler:type: .*StepLR"),
        ("val:metrics:psnr_y:type=psnr", "val:metrics:psnr_y:type: expected a metric"),
        ("datasets:train:type=PairedImagesDataset", "datasets:train:type: expected a dataset, .*PairedImageDataset"),
        ("datasets:valid=~", "datasets:valid: expected "),
        ("path:experiments_root=/data", "path:experiments_root: expected none, .* or make experiments/ a link"),
        ("network_g:scale=true", "network_g:scale: expected 2, 3 or 4, got True$"),
        ("network_g:scale=1", "network_g:scale: expected 2, 3 or 4, got 1; CompactDP.* RRDBNet, .* take it"),
        # mmocr#860: a second set was left out without a word, and a list should be put into quotes.
        ("datasets:train_1={name: a, type: SingleImageDataset, dataroot_lq: x, io_backend: {type: disk}}",
         "datasets:train_1: expected train, val, val_1, test_1 ..., got train_1; a run trains on one set: .* links"),
        ("train:scheduler={type: ReduceLROnPlateau}", "train:scheduler:type: .* .MultiStepLR .*val: patience"),
        ("train:gan_opt:gan_type=vanila", "train:gan_opt:gan_type: .*did you mean vanilla"),
        ("train:perceptual_opt:vgg_layer_weights={conv5_5: 1}", "conv5_5: expected a layer .*did you mean conv5_"),
        ("train:perceptual_opt:resnet_layer_weights={layer5: 1}", "resnet_layer_weights:layer5: .*layer"),
        ("train:perceptual_opt:reference=lpips", "expected the name of a term, got 'lpips'; there are: vgg, resnet"),
        # terms
        ("TERMS=[{type: LPIPSLos}]", "0:type: .*did you mean LPIPSLoss"),
        ("TERMS=[{type: LPIPSLoss, nett: alex}]", "0:nett: .*did you mean net"),
        ("TERMS=[{type: LPIPSLoss, mu: 0}]", "0:mu: expected a number > 0, got 0"),
        ("TERMS=[{mu: 1}]", "0: expected `type` .a loss. or `network` .of features., got neither"),
        ("TERMS=[{type: L1Loss, network: vgg11}]", "0: expected `type` .* got both"),
        ("TERMS=[{network: resnet999, layer_weights: {a: 1}}]", "0:network: .*timm/<name>, got 'resnet999'"),
        ("TERMS=[{network: resnet34}]", "0:layer_weights: expected a value"),
        ("TERMS=[{network: resnet34, layer_weights: {}}]", "0:layer_weights: expected at least 1 item"),
        ("TERMS=[{network: resnet34, layer_weights: {layer1: 1}, weigths: a}]", "0:weigths: .*did you mean weights"),
        ("TERMS=[{network: resnet34, layer_weights: {layer9: 1}}]", "layer9: expected a layer of resnet34"),
        ("TERMS=[{network: vgg11, layer_weights: {conv9_9: 1}}]", "conv9_9: expected a layer of vgg11"),
        ("TERMS=[{type: PerceptualLoss, layer_weights: {conv9: 1}}]", "conv9: expected a layer of vgg19"),
        ("TERMS=[{type: L1Loss, name: vgg}]", "0:name: expected a unique name, got 'vgg'"),
        ("TERMS=[{type: L1Loss, name: gan}]", "0:name: expected another name, got 'gan'"),
        ("TERMS=[{type: L1Loss}, {type: L1Loss}]", "1:name: expected a unique name, got 'L1Loss'"),
        # Of other trainers: epochs (kohya_ss#2976), a base (yacs#32), sections by dots (wandb#7737).
        ("train:max_epochs=9", "train:max_epochs: .*; lengths are counted in iterations: total_iter$"),
        # Stages of Restormer#28, and DAT#60's tiles.
        ("datasets:train:gt_sizes=[32, 64]", "gt_sizes: .*; a later start with --auto_resume may have another gt_size"),
        ("train:accum_iter=2", "accum_iter: .*; train: grad_accumulation is"),
        ("train:warmup_iter=None", "warmup_iter: .*, got 'None'; nothing is ~"),
        ("val:use_chop=true", "use_chop: .*; val: tile, a number of LQ pixels"),
        ("_base_=a.yml", "_base_: .*; a file has no base: copy it, or change keys with --force_yml$"),
        ("train.optim_g.lr=1", "train.optim_g.lr: .*; keys are separated by colons: train:optim_g:lr$"),
        # hydra#573: lists as other programs take them.
        ("train:optim_g:betas=0.9,0.99", "betas: expected a list, got '0.9,0.99'; in brackets: .0.9,0.99.$"),
        # omegaconf#72 and #179: one text, a list in quotes, and an element of a list.
        ("train:freeze=body.*", r"freeze: expected a list, got 'body\.\*'; in brackets: \[body\.\*\]$"),
        ("train:scheduler:milestones='[5, 10]'", r"milestones: .*, got '\[5, 10\]'; in brackets: \[5, 10\]$"),
        ("train:freeze=\u061c", r"freeze: expected a list, got '\\u061c'; in brackets: \[\\u061c\]$"),
        ("datasets:train:mean=0.5", r"mean: expected a list, got 0\.5; in brackets: \[0\.5\]$"),
        ("train:optim_g:betas[1]=0.9", r"betas\[1\]: .*; give all of a list: key=\[1, 2\]$"),
        # types and ranges
        ("train=3", "train: expected a section of keys, got 3$"),
        ("train:total_iter=ten", "train:total_iter: expected a whole number, got 'ten'"),
        ("train:total_iter=0", "train:total_iter: expected a number >= 1, got 0"),
        # RVC-WebUI#1262: switched off by 0.
        ("logger:print_freq=0", "expected a number >= 1, got 0; a number above total_iter logs no losses"),
        ("logger:save_checkpoint_freq=~", "logger:save_.*; a number above total_iter saves at the end"),
        ("logger:keep_last=0", "expected a number >= 1, got 0; left out, all checkpoints are kept"),
        ("train:total_iter=~", "train:total_iter: expected a whole number, got None"),
        ("train:ema_decay=1", "train:ema_decay: expected a number < 1, got 1"),
        ("train:amp=fp8", "train:amp: expected 'none', 'bf16' or 'fp16', got 'fp8'"),
        ("train:channels_last=1", "train:channels_last: expected true or false, got 1"),
        ("train:optim_g:lr=.nan", "train:optim_g:lr: expected a finite number, got nan"),
        ("train:optim_g:betas=[0.9]", "train:optim_g:betas: expected at least 2 items"),
        ("train:perceptual_opt:mu=-1", "train:perceptual_opt:mu: expected a number > 0, got -1"),
        ("train:perceptual_opt:input_channels=gray", "input_channels: expected 'repeat' or a list, got 'gray'"),
        ("train:perceptual_opt:input_channels=[0, 1]", "input_channels: expected repeat, or triples of indices"),
        ("train:pixel_opt:reduction=none", "train:pixel_opt:reduction: expected 'mean' or 'sum', got 'none'"),
        ("network_g:num_block=0", "network_g:num_block: expected a number >= 1, got 0"),
        ("num_gpu=99", "num_gpu: expected auto or a number from 0"),
        ("num_gpu=all", "num_gpu: expected 'auto' or a whole number, got 'all'"),
        ("datasets:train:max_bad_share=2", "max_bad_share: expected a number <= 1, got 2"),
        ("val:metrics:lpips_alex:net=resnet", "val:metrics:lpips_alex:net: expected 'alex' or 'vgg', got 'resnet'"),
        # combinations
        ("datasets:train:gt_size=126", "gt_size: expected a multiple of scale .4., got 126"),
        ("datasets:train:gt_size=256", "gt_size: expected 128, the size that network_d needs"),
        # BasicSR#389: 128 was advised, which is no multiple of 3.
        ("scale=3 and network_g:scale=3 and datasets:train:gt_size=201", "gt_size: .*: give another network_d"),
        # HAT's option files, SwinIR#165: a misspelt upsampler made a network of x1.
        ("tile={tile_size: 32}", "tile: expected a known key, .*; val: tile, a number of LQ pixels, cuts"),
        ("network_g={type: SwinIR, upscale: 4, upsampler: pixelshuffel}", "upsampler: .*; did you mean pixelshuffle?"),
        ("network_g={type: SwinIR, upscale: 4, resi_connection: 4conv}", "network_g:resi_connection: .*'3conv'"),
        ("network_g={type: SwinIR, upscale: 4, window_size: 8.0}", "window_size: expected a whole number, got 8.0"),
        (
            "network_g={type: SwinIR, upscale: 4, embed_dim: 50, window_size: 8}",
            "network_g:embed_dim: expected a multiple of each of num_heads .\\[6, 6, 6, 6\\].,",
        ),
        ("network_d:input_size=192", "network_d:input_size: expected 128 or 256, got 192"),
        ("network_g:num_out_ch=1", "network_g:num_out_ch: expected 3"),
        ("scale=2", "network_g:scale: expected 2, the scale of the data, got 4"),
        ("network_g={type: RRDBNetDP, scale: 8}", "scale: expected 2, 3 or 4, got 8; CompactDP, with upscale: 8"),
        ("train:scheduler:milestones=[2, 1]", "milestones: expected increasing iterations"),
        ("train:scheduler:milestones=[500000]", "milestones: expected iterations up to train:total_iter .400000."),
        ("train:scheduler={type: CosineAnnealingRestartLR, periods: [9]}", "periods: expected a sum of at least"),
        ("train:scheduler={type: OneCycleLR, max_lr: 1, total_steps: 9}", "total_steps: expected at least train:total"),
        ("train:scheduler:restart_weights=[1, 1]", "restart_weights: expected 1, one for each of restarts, got 2"),
        ("train:warmup_iter=500000", "train:warmup_iter: expected iterations up to train:total_iter .400000., got 5"),
        ("datasets:train:dataroot_gt=datasets/x", "dataroot_gt: expected a name ending in .lmdb"),
        ("datasets:val_1:dataroot_gt=x.lmdb", "datasets:val_1:dataroot_gt: expected a folder of images"),
        ("datasets:val_1:color=y", "datasets:val_1:color: expected none, because network_g takes 3 channel.s., got y"),
        ("datasets:train:mean=[0, 0, 0]", "datasets:train:mean: expected mean and std or neither, got one of them"),
        ("datasets:val_1:std=[1, 1, 1]", "datasets:val_1:std: expected mean and std or neither, got one of them"),
        ("datasets:train:mean=[0, 0] and datasets:train:std=[1]", "mean: expected a number for each channel .3., got"),
        ("datasets:train:mean=[0] and datasets:train:std=[1, 0, 1]", "std:1: expected a number > 0, got 0"),
        ("network_d=~", "network_d: expected a value, which training needs"),
        ("datasets:train:batch_size_per_gpu=~", "batch_size_per_gpu: expected a value, which training needs"),
        ("datasets:train={name: a, type: SingleImageDataset, dataroot_lq: x, io_backend: {type: disk}, "
         "num_worker_per_gpu: 1, batch_size_per_gpu: 16}",
         "datasets:train:type: expected a set of pairs, SingleImageDataset has no GT"),
        ("datasets:train:num_worker_per_gpu=0 and datasets:train:prefetch_mode=cpu",
         "datasets:train:num_worker_per_gpu: expected 1 or more with prefetch_mode: cpu"),
        ("train:grad_accumulation=32", "grad_accumulation: expected up to batch_size_per_gpu .16., which it splits"),
        ("train:ldl_opt={type: LDLLoss}", "train:ema_decay: expected a number > 0 for ldl_opt.*got 0"),
        ("logger={print_freq: 1, save_checkpoint_freq: 1, wandb: {project: a}}", "use_tb_logger: expected true"),
        ("model_type=SRGANDPModel", "train:gan_opt:sync_mean: expected none: SRGANDPModel's loss does not support it"),
        ("train:balance={shares: {pix: 0.5, lpips: 0.5}}",
         "train:balance: shares: expected losses of the step, got 'lpips'; there are: pix, percep, gan, vgg, resnet"),
        ("train:balance={shares: {pix: 1.5, gan: -0.5}}", "train:balance:shares:gan: expected a number >= 0, got -0.5"),
        ("datasets:val_2={name: Set5, type: SingleImageDataset, dataroot_lq: x, io_backend: {type: disk}}",
         "datasets:val_2:name: expected another name, got 'Set5': val_1 has it"),
        ("val:tile=20", "val:tile: expected more than twice tile_overlap .16., got 20"),
        ("val:monitor=Set5/psnr", "val:monitor: expected a metric of val: metrics, or set/metric, got 'Set5/psnr'"),
        ("val:metrics={\u00e9cart: {type: calculate_psnr, crop_border: 4}} and val:monitor=e\u0301cart",
         "val:monitor: .*; did you mean \u00e9cart, in the other form of Unicode .NFC, NFD..$"),
        ("val:monitor=psnr and val:metrics=~", "val:monitor: expected a metric .*, or set/metric, got 'psnr'$"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(entry: str, message: str) -> None:
    texts = problems(*entry.replace("TERMS", TERMS).split(" and "))
    assert len(texts) == 1, texts
    assert re.match(f"(.*: ?)?{message}", texts[0])


def test_names_leave_room_for_what_is_added_where_names_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """nextcloud/desktop#467: eCryptfs takes 143 bytes."""
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    for length in (88, 89):
        texts = problems(f"name={'x' * length}")
        assert ["of at most 88 bytes" in text for text in texts] == [True] * (length > 88)
    # FAT says 1530: 255 signs of up to 6 bytes.
    monkeypatch.setattr(os, "pathconf", lambda *_: 1530)
    assert "of at most 200 bytes" in problems(f"name={'x' * 201}")[0]


@pytest.mark.parametrize(
    "entry",
    [
        "deterministic=true", "dist_params={backend: gloo, port: 29501, timeout: 600}",
        "dist_params:timeout=60", "train:balance:shares={pix: 0.5, gan: 0.5}",
        "datasets:train:on_bad_image=skip", "datasets:train:max_bad_share=0.1", "datasets:train:batch_size_total=16",
        "train:max_nonfinite=3", "train:sync_batch_norm=true", "train:grad_clip=1", "train:gan_opt:sync_mean=false",
        "train:balance={shares: {pix: 0.1, vgg: 0.9}, by: value, ema: 1, max_weight: 10, start_iter: 5e3, x_mine: 1}",
        "train:balance={shares: {percep: 0.5, gan: 0.5}}", "train:gan_opt:ramp=5000", "train:gan_opt:ramp=~",
        "val:tile=128", "val:tile_overlap=8", "val:threads=1", "logger:keep_last=3", "logger:keep_best=true",
        "datasets:train:dataset_enlarge_ratio=2.5", "datasets:train:use_shuffle=true", "datasets:train:dataroot_flow=~",
        "datasets:train:filename_tmpl='{}'", "train:optim_g={type: AdamW, lr: 1e-4, weight_decay: 0.01}",
        "train:optim_g={type: SGD, lr: 0.1, momentum: 0.9, nesterov: true}", "train:optim_g={type: Rprop}",
        "datasets:val_1:type=RealESRGANPairedDataset", "network_g={type: SwinIR, upscale: 4, num_heads: [6, 6, 6, 6]}",
        "train:total_iter=4e5", "train:total_iter=4", "val=~", "manual_seed=~", "x_mine={a: 1}", "train:x-mine=1",
        "datasets:train:x_mine=1", "train:pixel_opt={type: CharbonnierLoss, eps: 1e-6}",
    ],
)  # fmt: skip
def test_valid_options_pass(entry: str) -> None:
    """Every key that the shipped files do not use, a shortened run, and other programs' keys."""
    assert problems(entry) == []


def test_raw_records_do_not_support_filename_templates() -> None:
    raw = "datasets:train:type=PairedRawDataset"
    assert problems(raw, "datasets:train:filename_tmpl='{}'") == []
    (found,) = problems(raw, "datasets:train:filename_tmpl='{}x4'")
    assert found.startswith("datasets:train:filename_tmpl: expected '{}'")


def test_the_best_network_s_file_has_a_legal_name() -> None:
    names = [
        f"datasets:val_1:name={'n' * 190}",
        f"val:metrics={{{'m' * 60}: {{type: calculate_psnr, crop_border: 4}}}}",
    ]
    (text,) = problems(*names)
    assert re.search("expected a shorter name: with that of 'n.* the best network's file has one of 274 bytes", text)
    assert problems(names[0]) == problems(names[1]) == []


def test_a_foreign_model_may_have_optimizers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(BaseModel):
        pass

    class Own(BaseModel):
        def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> None:
            pass

    for model in (Plain, Own):
        monkeypatch.setitem(MODEL_REGISTRY._obj_map, model.__name__, model)
    lion = "train:optim_g={type: Lioness9, lr: 1e-4}"
    assert problems("model_type=Own", lion) == []
    assert any("train:optim_g:type: expected an optimizer" in text for text in problems("model_type=Plain", lion))


@pytest.mark.parametrize("entry", ["datasets=true", "datasets=[test]", "datasets={test: 3}", "path=3", "train=3"])
def test_a_value_in_place_of_a_section(entry: str) -> None:
    """Found by fuzzing: rules about several values must not look into it."""
    for is_train in (True, False):
        assert "expected a section of keys" in " ".join(problems(entry, is_train=is_train))


def test_all_problems_are_reported_with_their_lines() -> None:
    text = DEMO.read_text().replace("gt_size:", "gtsize:").replace("num_conv: 16", "num_conv: two")
    text = text.replace("name: held_out", "name: held_out\n    nmae: a").replace("print_freq: 5", "print_freq: 0")
    file = Path("bad.yml")
    file.write_text(text)
    lines = text.splitlines()
    message = refusal(["-opt", str(file), "--force_yml", "train:total_itr=3", "scale=four"]).splitlines()
    assert message[0] == f"{file}: 10 problems"
    for words in ("gtsize:", "num_conv: two", "nmae: a", "print_freq: 0", "dataroot_gt: datasets/demo/HR"):
        line = next(number for number, text in enumerate(lines, start=1) if words in text)
        assert [text for text in message if text.startswith(f"{file}:{line}: ")], words
    assert any(line.startswith("--force_yml train:total_itr=3: train:total_itr: ") for line in message)
    assert "--force_yml scale=four: scale: expected a whole number, got 'four'" in message
    section = lines.index("  train:") + 1
    assert [text for text in message if text.startswith(f"{file}:{section}: datasets:train:gt_size: expected a value")]


def test_the_known_keys_of_a_section_are_listed_once() -> None:
    Path("theirs.yml").write_text("l1_gt_usm: true\ngan_gt_usm: true\n" + TRAIN.read_text())
    lines = refusal(["-opt", "theirs.yml"]).splitlines()[1:3]
    assert ["there are: name, model_type" in line for line in lines] == [True, False]


def test_a_merged_key_has_the_line_of_its_definition() -> None:
    text = TRAIN.read_text().replace("type: disk", "type: dsk")
    Path("a.yml").write_text(text)
    line = text.splitlines().index("      type: dsk") + 1
    message = refusal(["-opt", "a.yml"])
    for name in ("val_1", "val_2", "val_4"):
        assert f"a.yml:{line}: datasets:{name}:io_backend:type: expected 'disk', 'lmdb'" in message


def test_sections_merged_exponentially_often_do_not_hang() -> None:
    lines = ["a0: &a0 {k: 1}", *(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}, *a{i}], x{i}: 1}}" for i in range(18))]
    Path("merged.yml").write_text("\n".join([*lines, "train: {<<: [*a18, *a18]}", "b: &b {<<: *b}"]))
    assert f"merged.yml:{len(lines)}: train:x17: " in refusal(["-opt", "merged.yml"])


def test_missing_files_are_reported_with_the_other_problems() -> None:
    entries = ["path:pretrain_network_g=no.pth", "path:resume_state=no.state", "train:foo=1"]
    Path("experiments/ESRGAN_DP_x4_DIV2K/training_states").mkdir(parents=True)  # of a run without a checkpoint
    message = refusal(["-opt", str(TRAIN), "--force_yml", *entries])
    for words in ("dataroot_gt: ", "dataroot_lq: ", "'no.pth': no such file", "'no.state': no such file", "train:foo"):
        assert words in message
    assert message.count("dp-basicsr data extract") == 1, "how to make the data is said once"


def test_a_model_that_pads_by_the_window_needs_one() -> None:
    """BasicSR's; without it the first validation was a KeyError."""
    message = refusal(["-opt", str(TRAIN), "--force_yml", "model_type=SwinIRModel"])
    assert "model_type: expected PSNRModel for a network_g without window_size" in message
    alone = ("network_d=~", "train:gan_opt=~", "train:optim_d=~", "train:perceptual_opt={type: L1Loss}")
    assert not any("window" in text for text in problems("model_type=SwinIRModel", *alone, "val=~"))


@pytest.mark.parametrize(
    "entry", ["", "val=~", "datasets:val:io_backend:type=lmdb", "datasets:val:dataroot_gt=nowhere"]
)
def test_a_list_is_needed_where_it_is_read(entry: str, tmp_path: Path) -> None:
    opt = read_options(TRAIN)
    roots = {"dataroot_gt": str(tmp_path), "dataroot_lq": str(tmp_path)}
    opt["datasets"] = {"val": {**opt["datasets"]["val_1"], **roots, "meta_info_file": "nowhere.txt"}}
    override(opt, [entry] if entry else [])
    missing = [problem.path for problem in find_problems(opt, True, {}) if problem.missing]
    assert (("datasets", "val", "meta_info_file") in missing) == (not entry)
    opt["datasets"]["val"]["meta_info_file"] = str(tmp_path)  # DiffBIR#122
    texts = [problem.text for problem in find_problems(opt, True, {}) if problem.path[-1:] == ("meta_info_file",)]
    assert all(text.endswith(": a folder; without the key all of the set's images are used") for text in texts)
    assert bool(texts) == (not entry)


def test_an_address_in_place_of_a_file_gets_advice() -> None:
    """FeMaSR's option files name their weights so."""
    message = refusal(["-opt", str(TRAIN), "--force_yml", "path:pretrain_network_g=https://example.org/net.pth"])
    assert "'https://example.org/net.pth': no such file; download it first" in message


@pytest.mark.parametrize("key", ["vgg_weights", "resnet_weights", "extra_terms:0:weights", "extra_terms:1:weights"])
def test_missing_weights_of_a_loss_are_named_by_their_key(key: str) -> None:
    """Also by --check, which does without the other files."""
    opt = read_options(TRAIN)
    loss = opt["train"]["perceptual_opt"]
    loss["extra_terms"] = [{"network": "alexnet", "layer_weights": {"features.3": 1}}, {"type": "LPIPSLoss"}]
    holder = loss["extra_terms"][int(key.split(":")[1])] if ":" in key else loss
    holder[key.rpartition(":")[2]] = "no.pth"
    said = f"train:perceptual_opt:{key}: expected a file, got 'no.pth': no such file in {Path.cwd()}"
    every = find_problems(opt, is_train=True)
    assert said in [f"{':'.join(map(str, problem.path))}: {problem.text}" for problem in every if not problem.missing]


def test_a_state_that_is_named_in_another_way_gets_the_form_of_its_name() -> None:
    """tdrussell/diffusion-pipe#202: by its iteration, or by the folder of the run, which exists."""
    Path("experiments/run").mkdir(parents=True)
    for name, what in (("8", "no such file"), ("experiments/run", "a folder")):
        message = refusal(["-opt", str(TRAIN), "--force_yml", f"path:resume_state={name}"])
        what += f" in {Path.cwd()}; a state's name is experiments/NAME/training_states/5"
        assert f"expected a file, got '{name}': {what}" in message
    # The own run's, which has states (coqui-ai/TTS#1197).
    states = Path("experiments/ESRGAN_DP_x4_DIV2K/training_states")
    states.mkdir(parents=True)
    (states / "8.state").touch()
    for name in (str(states.parent), str(states)):
        message = refusal(["-opt", str(TRAIN), "--force_yml", f"path:resume_state={name}"])
        assert f"expected a file, got '{name}': a folder" in message
        assert f"{states}/8.state" in message


def test_an_lmdb_may_end_with_a_slash() -> None:
    Path("a.lmdb").mkdir()
    roots = [f"datasets:train:{name}=a.lmdb/" for name in ("dataroot_gt", "dataroot_lq")]
    opt = parse_options(["-opt", str(TRAIN), "--force_yml", *roots], True)
    assert opt["datasets"]["train"]["dataroot_gt"] == "a.lmdb", "BasicSR compares the end of the name"


def test_a_missing_path_with_a_line_break_gets_advice() -> None:
    for key in ("datasets:train:dataroot_gt", "path:resume_state"):
        message = refusal(["-opt", str(TRAIN), "--force_yml", rf'{key}="C:\new\table.lmdb"'])
        assert message.count(IN_SINGLE_QUOTES) == 1
    assert IN_SINGLE_QUOTES not in refusal(["-opt", str(TRAIN), "--force_yml", r"path:resume_state=C:\new\table.lmdb"])


def test_a_variable_in_a_missing_path_gets_advice() -> None:
    for key in ("datasets:train:dataroot_gt", "path:resume_state"):
        assert refusal(["-opt", str(TRAIN), "--force_yml", f"{key}=$HOME/x.lmdb"]).count("; $ is no variable here") == 1


def test_a_path_that_no_system_takes_is_missing() -> None:
    message = refusal(["-opt", str(TRAIN), "--force_yml", 'datasets:train:dataroot_gt="a\\0b/c.lmdb"'])
    assert message.count("/c.lmdb': no such folder; ") == 1


def test_a_path_that_a_comment_cuts_off_gets_advice() -> None:
    """r-lib/yaml#117."""
    Path("set #2").mkdir()
    message = refusal(
        ["-opt", str(TRAIN), "--force_yml", "datasets:train:dataroot_gt=set", "datasets:train:io_backend:type=disk"]
    )
    assert message.count("; what follows # is a comment: put the path into single quotes") == 1


def test_an_archive_in_place_of_a_folder_gets_advice() -> None:
    """Sana#111: a data set of tar shards."""
    Path("a.tar").touch()
    message = refusal(
        ["-opt", str(TRAIN), "--force_yml", "datasets:train:dataroot_gt=a.tar", "datasets:train:io_backend:type=disk"]
    )
    assert message.count("; it is a file: name its folder, or unpack it first") == 1


def test_a_test_needs_one_of_its_sets() -> None:
    message = refusal(["-opt", str(OPTIONS / "test_esrgan_dp.yml")], is_train=False)
    assert re.search(r"(?s)none of Set5 \(.*data download set5 set14 bsd100 urban100", message)
    entry = f"datasets:test_1:dataroot_gt={TRAIN}"  # HAT#7: a single image
    message = refusal(["-opt", str(OPTIONS / "test_esrgan_dp.yml"), "--force_yml", entry], is_train=False)
    assert re.search(r"none of Set5 \(.*, a file: name its folder\)", message)


def test_a_check_continues_if_only_data_is_missing() -> None:
    missing = check_options(read_options(TRAIN), str(TRAIN), [], is_train=True, may_miss_data=True).missing
    assert len(missing) == 1
    # keras-retinanet#117: a relative path is sought here, not beside the option file.
    assert missing[0].count(f"no such folder in {Path.cwd()}") == 2
    opt = read_options(TRAIN)
    find_problems(opt, is_train=True)
    assert opt == read_options(TRAIN), "checking changes nothing"
    override(opt, ["train:total_iter=-1"])
    with pytest.raises(UserError, match="total_iter"):
        check_options(opt, str(TRAIN), ["train:total_iter=-1"], is_train=True, may_miss_data=True)


def test_another_plugin_s_model_may_have_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherModel(BaseModel):
        """Reads train:rank_opt, which is much like gan_opt, and path:pretrain_network_p (MM-RealSR, DASR)."""

    class OtherNet:
        def __init__(self, width: int, names: "NotImported", **more: int) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
            """Hands num_feats on."""

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "OtherModel", OtherModel)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "OtherNet", OtherNet)
    entries = ["my_section=1", "train:my_loss_opt={type: a}"]
    entries += ["network_g={type: OtherNet, width: 1, names: 2, depth: 3}"]
    assert problems("model_type=OtherModel", *entries) == []
    near = ["train:rank_opt=1", "network_g:num_feats=1", "path:pretrain_network_p=a"]
    assert problems("model_type=OtherModel", *entries, *near) == []
    # As no code has them, not this file either.
    wrong = [key.replace("t", "tt") for key in ("train:perceptual_opt=1", "network_g:width=1", "path:resume_state=a")]
    assert len(problems("model_type=OtherModel", *entries, *wrong, "path:any_folder=a")) == 4
    assert len(problems(*entries)) == 2, "our own models read no such keys"
    (problem,) = problems("model_type=NotImported", *entries)
    assert problem.startswith("model_type: expected a model"), "whose keys are not known"


def test_a_key_of_another_program_is_left_out_by_setting_it_to_nothing() -> None:
    """SAFMN's FFT loss, and the `task` in the sets of DAT, RGT and CATANet."""
    assert problems("train:fft_opt=~", "datasets:train:task=~") == []
    assert problems("datasets:val_1=~") == [], "a set whose lines are commented out (coqui-ai/TTS#1447)"
    assert len(problems("network_g:fft=~", "path:any_folder=~")) == 2, "an argument, and a folder of BasicSR's"


def test_basicsr_s_own_classes_pass() -> None:
    entries = ["network_g={type: SwinIR, upscale: 4, img_size: 48, embed_dim: 60, depths: [6, 6], mlp_ratio: 2}",
               "train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}, style_weight: 0}",
               "network_d={type: UNetDiscriminatorSN, num_in_ch: 3}"]  # fmt: skip
    entries += ["model_type=ESRGANModel", "train:channels_last=false"]
    entries += ["train:gan_opt={type: GANLoss, gan_type: vanilla, loss_weight: 5e-3}"]
    assert problems(*entries) == []


def test_options_that_basicsr_s_models_ignore_are_refused() -> None:
    """They would silently ignore it, and GANLoss does not support sync_mean."""
    asked = ["train:amp=bf16", "val:tile=128", "logger:keep_best=true", "train:max_nonfinite=10"]
    asked += ["train:balance={shares: {pix: 0.5, gan: 0.5}}", "train:gan_opt:ramp=10"]
    texts = problems("model_type=ESRGANModel", *asked)
    assert [re.findall(r"(\S+): expected none: ESRGANModel", text)[0] for text in texts] == [
        "train:gan_opt:sync_mean", "train:gan_opt:ramp", "train:balance", "train:channels_last", "train:amp",
        "val:tile", "logger:keep_best",
    ]  # fmt: skip


def test_the_environment_variable_for_unsafe_loading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's own torch.load would obey it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in problems()[0]


@pytest.mark.parametrize("name", ["ablation", "beta", "comparison", "correlation", "mu", "networks"])
def test_the_studies_overrides_are_valid(name: str) -> None:
    """Of the smoke run: the first and the last job, whose other overrides are the study's own."""
    smoke = make_jobs(replace(read_study(name), smoke=read_smoke()))
    for job in [*make_jobs(read_study(name)), smoke[0], smoke[-1]]:
        assert problems(*job.train, file=job.train_file) == []
        assert problems(*job.test, file=job.test_file, is_train=False) == []


def test_the_overrides_for_x3_are_valid() -> None:
    """docs/training.md, Other scales."""
    text = (OPTIONS.parent / "docs/training.md").read_text(encoding="utf-8")
    entries = shlex.split(text.partition("--force_yml scale=3")[2].partition("```")[0].replace("\\\n", " "))
    assert problems("scale=3", *entries) == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("datasets:train:kernel_list=[iso, round]", "expected a list of iso, aniso, generalized_iso"),
        ("datasets:train:kernel_prob2=[0.5, 0.5]", "expected 3 numbers, of iso, aniso, plateau_iso; got [0.5, 0.5]"),
        ("resize_prob=[0.2, 0.8]", "expected 3 numbers, of up, down, keep; got [0.2, 0.8]"),
        ("datasets:train:kernel_list=[]", "expected a list of iso, aniso, generalized_iso"),
        ("datasets:train:blur_sigma=[1, 1]", "expected [low, high] within 0 to 100, got [1, 1]"),
        ("datasets:train:blur_sigma=[0, 3]", ""),
        ("jpeg_range=[0, 120]", "expected [low, high] within 1 to 100, got [0, 120]"),
        ("noise_range2=[30, 1]", "expected [low, high] within 0 to 255, got [30, 1]"),
        ("noise_range2=[30, 30]", ""),
        ("train:accumulate=2", "expected a known key, got one that no code reads"),
    ],
)
def test_a_degradation_that_cannot_be_drawn_is_named(
    entry: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real-ESRGAN draws from lists and ranges, and blamed the image it was drawn for; others may draw more."""
    train = {f"datasets:train:{key}={json.dumps(value)}" for key, value in REAL_ESRGAN_KERNELS.items()}
    entries = ["model_type=RealESRGANModel", "datasets:train:type=RealESRGANDataset", *sorted(train), entry]
    texts = [text for text in problems(*entries) if text.startswith(entry.partition("=")[0] + ":")]
    assert len(texts) == bool(expected)
    assert expected in "".join(texts)
    foreign = type("ForeignModel", (RealESRGANModel,), {"__module__": "foreign"})
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "ForeignModel", foreign)
    others = problems(*entries, "model_type=ForeignModel")
    assert not any(text.startswith(entry.partition("=")[0] + ":") for text in others)


def test_models_that_basicsr_registers_with_a_suffix_are_found() -> None:
    """Real-ESRGAN's model reads its own keys at the top level."""
    entries = ["model_type=RealESRGANModel", "train:channels_last=false"]
    entries += ["train:gan_opt={type: GANLoss, gan_type: vanilla}", "percep_gt_usm=true", "gan_gt_usm=false"]
    (text,) = problems(*entries, "l1_gt_usm=true", "queue_size=160")  # KeyError: 'kernel1', Real-ESRGAN#657
    assert text.startswith("high_order_degradation: expected false for a set of pairs")
    entries += ["high_order_degradation=false"]
    (text,) = problems(*entries, "resize_prob=[0.2, 0.7, 0.1]", "queue_size=160")
    assert text.startswith("l1_gt_usm: expected a value, which training needs")
    entries += ["l1_gt_usm=true"]
    assert problems(*entries, "resize_prob=[0.2, 0.7, 0.1]", "queue_size=160") == []
    (text,) = problems(*entries, "queue_size=180")  # the model asserts it at its first step
    assert "queue_size: expected a multiple of batch_size_per_gpu (16), got 180" in text
    assert problems(*entries, "queue_size=180", "datasets:train:batch_size_total=12") == []
    for size in ("0", "-16", "many", "16.0"):  # errors of Python's at its first step
        for total in ((), ("datasets:train:batch_size_total=12",)):
            (text,) = problems(*entries, f"queue_size={size}", *total)
            assert "queue_size: expected a multiple of" in text
            assert f"got {size}" in text
    entries += ["queue_size=160", "datasets:train:type=RealESRGANDataset"]
    text, _ = sorted(problems(*entries, "gt_size=512"), reverse=True)  # Real-ESRGAN#172
    assert "gt_size: expected up to 400, the side of RealESRGANDataset's images, got 512" in text
    for model in ([], ["model_type=ESRGANDPModel"]):  # KeyError: 'lq', StableSR#55
        text = "\n".join(problems(*entries, *model, "gt_size=64"))
        assert "datasets:train:type: expected a set of pairs: RealESRGANDataset has no LQ" in text
    texts = problems(*entries, "gt_size=64", "high_order_degradation=true")
    assert "resize_prob: expected a value, which training needs, got nothing: it is missing" in texts
