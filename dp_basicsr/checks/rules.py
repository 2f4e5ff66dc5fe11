"""Rules for combinations of values, and missing files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from dp_basicsr.archs.perceptual_arch import RESNET_STAGES, RESNET_TYPES, VGG_TYPES
from dp_basicsr.checks.problems import Path, Problem, hint
from dp_basicsr.checks.signatures import members_of
from dp_basicsr.checks.view import View
from dp_basicsr.data.datasets import how_to_get_data, how_to_get_test_sets
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.losses.balance import build_balancer
from dp_basicsr.losses.dual_perceptual_loss import OTHER_LOSSES
from dp_basicsr.models import ESRGANDPModel, SRGANDPModel
from dp_basicsr.options.reading import quote
from dp_basicsr.options.schema import DATASETS, OptionFile, section_in
from dp_basicsr.options.section import OURS

import torch
from basicsr.archs.vgg_arch import NAMES, insert_bn
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import MODEL_REGISTRY

PERCEPTUAL: Path = ("train", "perceptual_opt")

TERMS: Path = (*PERCEPTUAL, "extra_terms")


def find_conflicts(opt: View, is_train: bool, overridden: Collection[str]) -> Iterator[Problem]:
    """Apply all rules for values.

    Args:
        opt: Options.
        is_train: True for train.py, which needs more keys.
        overridden: Keys set on the command line.
    """
    yield from _gpus(opt)
    yield from _network_scale(opt)
    yield from _io_backends(opt)
    yield from _layers(opt)
    yield from _terms(opt)
    yield from _tiles(opt)
    # `--force_yml train:total_iter=10` is how a run is tried out; its milestones lie beyond.
    yield from _schedule(opt, cut_short="train:total_iter" in overridden)
    yield from _restart_weights(opt)
    yield from _monitor(opt)
    yield from _wandb(opt)
    yield from _ours_alone(opt)
    yield from _colors(opt, "val" if is_train else "test")
    yield from _set_names(opt, "val" if is_train else "test")
    if not is_train and opt.raw("val") is None:
        yield Problem(("val",), "expected a section with save_img, which a test needs, got nothing: it is missing")
    if is_train:
        yield from _needed_to_train(opt)
        yield from _patches(opt)
        yield from _channels(opt)
        yield from _losses(opt)
        yield from _balance(opt)
        yield from _batch(opt)


def _gpus(opt: View) -> Iterator[Problem]:
    wanted, there = opt.valid("num_gpu"), torch.cuda.device_count()
    if isinstance(wanted, int) and wanted > there:
        yield Problem(("num_gpu",), f"expected auto or a number from 0 (CPU) to {there} (GPUs here), got {wanted}")


def _network_scale(opt: View) -> Iterator[Problem]:
    """The generator's scale must be that of the data, whatever its class calls it."""
    scale = opt.valid("scale")
    # RRDBNet calls it scale, MSRResNet upscale.
    for key in ("scale", "upscale"):
        factor = opt.valid("network_g", key)
        if isinstance(scale, int) and isinstance(factor, int) and factor != scale:
            yield Problem(("network_g", key), f"expected {scale}, the scale of the data, got {factor}")


def _io_backends(opt: View) -> Iterator[Problem]:
    """BasicSR recognises an LMDB by the suffix of its name."""
    for name in opt.valid("datasets") or ():
        kind = opt.valid("datasets", name, "io_backend", "type")
        if kind not in ("disk", "lmdb"):
            continue
        for root in ("dataroot_gt", "dataroot_lq"):
            path = opt.valid("datasets", name, root)
            if path is not None and path.endswith(".lmdb") != (kind == "lmdb"):
                form = "a name ending in .lmdb" if kind == "lmdb" else "a folder of images, not an LMDB,"
                yield Problem(("datasets", name, root), f"expected {form} for io_backend: {kind}, got {quote(path)}")


def _layers(opt: View) -> Iterator[Problem]:
    """Layers of DPLoss must be layers of its VGG and of its terms' VGGs and ResNets."""
    if opt.valid(*PERCEPTUAL, "type") != "DPLoss":
        return
    networks = [((*PERCEPTUAL, "vgg_layer_weights"), opt.valid(*PERCEPTUAL, "vgg_type"))]
    networks += [((*path, "layer_weights"), opt.valid(*path, "network")) for path in _term_paths(opt)]
    for path, network in networks:
        names = _layer_names(network)
        for layer in (opt.valid(*path) or ()) if names else ():
            if layer not in names:
                text = f"expected a layer of {network}, got {quote(layer)}{hint(layer, names)}"
                yield Problem((*path, layer), text)


def _layer_names(network: Any) -> Sequence[str]:
    """Return the layers of a VGG or ResNet; () for other networks, whose layers are known only when built."""
    if network in RESNET_TYPES:
        return RESNET_STAGES
    if network not in VGG_TYPES:
        return ()
    names: list[str] = NAMES[network.removesuffix("_bn")]
    return insert_bn(names) if network.endswith("_bn") else names


def _term_paths(opt: View) -> list[Path]:
    """Return the paths of DPLoss's further terms."""
    terms = opt.raw(*TERMS)
    return [
        (*TERMS, number)
        for number, term in enumerate(terms if isinstance(terms, list) else ())
        if isinstance(term, dict)
    ]


def _terms(opt: View) -> Iterator[Problem]:
    """Terms of a DPLoss must have different names, and its reference must be one of them."""
    if opt.valid(*PERCEPTUAL, "type") != "DPLoss":
        return
    reference = opt.valid(*PERCEPTUAL, "reference")
    networks = ["resnet"] if opt.valid(*PERCEPTUAL, "resnet_layer_weights") else []
    if opt.valid(*PERCEPTUAL, "vgg_layer_weights"):
        networks.insert(0, "vgg")
    elif reference == "vgg" and opt.valid(*PERCEPTUAL, "vgg_layer_weights") is not None:
        text = "expected at least one layer, or another term as `reference`, got an empty mapping"
        yield Problem((*PERCEPTUAL, "vgg_layer_weights"), text)
        return
    names = list(networks)
    for path in _term_paths(opt):
        name = opt.valid(*path, "name") or opt.valid(*path, "type") or opt.valid(*path, "network")
        # All are logged side by side, and balance tells them apart by name.
        if name in OTHER_LOSSES:
            yield Problem((*path, "name"), f"expected another name, got {quote(name)}, that of a loss of the step")
        if name in names:
            yield Problem((*path, "name"), f"expected a unique name, got {quote(name)}, which another term has")
        names.append(str(name))
    if isinstance(reference, str) and reference not in names:
        text = f"expected the name of a term, got {quote(reference)}{hint(reference, names)}"
        yield Problem((*PERCEPTUAL, "reference"), text)


def _tiles(opt: View) -> Iterator[Problem]:
    tile, overlap = opt.valid("val", "tile"), opt.valid("val", "tile_overlap")
    if isinstance(tile, int) and isinstance(overlap, int) and 2 * overlap >= tile:
        yield Problem(("val", "tile"), f"expected more than twice tile_overlap ({overlap}), got {tile}")


def _monitor(opt: View) -> Iterator[Problem]:
    """What patience watches must be measured: a metric, or one on a set."""
    monitor, metrics = opt.valid("val", "monitor"), opt.valid("val", "metrics") or {}
    datasets = opt.valid("datasets") or {}
    sets = [opt.valid("datasets", key, "name") for key in datasets if str(key).startswith("val")]
    known = [*metrics, *(f"{name}/{metric}" for name in sets for metric in metrics)]
    for name in [monitor] if isinstance(monitor, str) else monitor or ():
        if name not in known:
            text = f"expected a metric of val: metrics, or set/metric, got {quote(name)}{hint(name, known)}"
            yield Problem(("val", "monitor"), text)


def _schedule(opt: View, cut_short: bool) -> Iterator[Problem]:
    """Milestones must increase and precede the end, unless the command line shortened the run for a trial."""
    total, scheduler = opt.valid("train", "total_iter"), ("train", "scheduler")
    milestones = opt.valid(*scheduler, "milestones")
    if isinstance(milestones, list):
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            yield Problem((*scheduler, "milestones"), f"expected increasing iterations, got {quote(milestones)}")
        late = [milestone for milestone in milestones if total is not None and milestone > total]
        if late and not cut_short:
            yield Problem(
                (*scheduler, "milestones"), f"expected iterations up to train:total_iter ({total}), got {quote(late)}"
            )
    periods = opt.valid(*scheduler, "periods")
    if isinstance(periods, list) and total is not None and sum(periods) < total:
        yield Problem(
            (*scheduler, "periods"), f"expected a sum of at least train:total_iter ({total}), got {sum(periods)}"
        )
    # OneCycleLR raises when it is stepped beyond its total_steps.
    cycle = opt.valid(*scheduler, "total_steps")
    if isinstance(cycle, int) and total is not None and cycle < total:
        yield Problem((*scheduler, "total_steps"), f"expected at least train:total_iter ({total}), got {cycle}")
    warmup = opt.valid("train", "warmup_iter")
    if warmup is not None and total is not None and warmup > total and not cut_short:
        yield Problem(("train", "warmup_iter"), f"expected up to train:total_iter ({total}), got {warmup}")


def _restart_weights(opt: View) -> Iterator[Problem]:
    """Restarts of the learning rate need one weight each; both have one by default."""
    path = ("train", "scheduler", "restart_weights")
    cosine = opt.valid("train", "scheduler", "type") == "CosineAnnealingRestartLR"
    key = "periods" if cosine else "restarts"
    restarts, weights = opt.valid(*path[:2], key), opt.valid(*path)
    if isinstance(restarts, (list, tuple)) and isinstance(weights, (list, tuple)) and len(restarts) != len(weights):
        yield Problem(path, f"expected {len(restarts)}, one for each of {key}, got {len(weights)}")


def _wandb(opt: View) -> Iterator[Problem]:
    if opt.valid("logger", "wandb", "project") and opt.valid("logger", "use_tb_logger") is False:
        yield Problem(("logger", "use_tb_logger"), "expected true: wandb gets its figures from TensorBoard, got false")


def _ours_alone(opt: View) -> Iterator[Problem]:
    """Refuse options that BasicSR's own models would silently ignore, and sync_mean, which its losses do not know."""
    model = members_of(MODEL_REGISTRY).get(opt.valid("model_type"))
    if not isinstance(model, type) or not model.__module__.startswith(("basicsr.", "dp_basicsr.")):
        # Another package's model may read any key.
        return
    for key, owner in (("sync_mean", ESRGANDPModel), ("ramp", SRGANDPModel)):
        if opt.valid("train", "gan_opt", key) is not None and not issubclass(model, owner):
            yield Problem(("train", "gan_opt", key), f"expected none: {model.__name__}'s loss does not support it")
    if model.__module__.startswith("dp_basicsr."):
        return
    # A value equal to the default is harmless: it is what a model without the key does.
    for section, field in OptionFile.model_fields.items():
        fields = getattr(section_in(field.annotation), "model_fields", {})
        for key in (key for key in fields if OURS in fields[key].metadata):
            value = opt.valid(section, key)
            if value is not None and value != fields[key].default:
                text = f"expected none: {model.__name__} does not support it, got {quote(value)}"
                yield Problem((section, key), text)


def _is_gan(opt: View) -> bool:
    model = members_of(MODEL_REGISTRY).get(opt.valid("model_type"))
    return isinstance(model, type) and issubclass(model, SRGANModel)


def _needed_to_train(opt: View) -> Iterator[Problem]:
    """Require the keys that train.py reads unconditionally."""
    needed: list[Path] = [("train",), ("logger",), ("datasets", "train")]
    needed += [("logger", "save_checkpoint_freq")]
    needed += [("val", "val_freq")] if opt.valid("val") else []
    needed += [("network_d",), ("train", "optim_d"), ("train", "gan_opt")] if _is_gan(opt) else []
    train = ("datasets", "train")
    if opt.valid(*train, "type") in DATASETS:
        # Optional in the types, because test sets do not need them.
        needed += [(*train, key) for key in ("num_worker_per_gpu", "gt_size", "use_hflip", "use_rot")]
    for path in needed:
        if isinstance(opt.raw(*path[:-1]), dict) and opt.raw(*path) is None:
            yield Problem(path, "expected a value, which training needs, got nothing: it is missing")
    batch_sizes = [opt.raw(*train, key) for key in ("batch_size_per_gpu", "batch_size_total")]
    if isinstance(opt.raw(*train), dict) and batch_sizes == [None, None]:
        yield Problem(
            (*train, "batch_size_per_gpu"), "expected a value, which training needs, got nothing: it is missing"
        )


def _patches(opt: View) -> Iterator[Problem]:
    """The patch must be a multiple of the scale and match the discriminator."""
    size, scale = opt.valid("datasets", "train", "gt_size"), opt.valid("scale")
    path = ("datasets", "train", "gt_size")
    if isinstance(size, int) and isinstance(scale, int) and size % scale:
        yield Problem(path, f"expected a multiple of scale ({scale}), got {size}")
    elif isinstance(size, int) and opt.valid("network_d", "type") == "VGGStyleDiscriminator" and _is_gan(opt):
        # Its linear layer fits one size only.
        taken = opt.valid("network_d", "input_size")
        if taken is not None and size != taken:
            yield Problem(
                path, f"expected {taken}, the size that network_d needs (its input_size: 128 or 256), got {size}"
            )


def _channels(opt: View) -> Iterator[Problem]:
    """Networks and DPLoss must accept the channels of the training set: 3, or 1 with ``color: y``."""
    if opt.valid("datasets", "train", "type") not in DATASETS:
        return
    channels = 1 if opt.valid("datasets", "train", "color") == "y" else 3
    gives = "as the training set has (3, or 1 with PairedImageDataset's color: y)"
    for path in (("network_g", "num_in_ch"), ("network_g", "num_out_ch"), ("network_d", "num_in_ch")):
        taken = opt.valid(*path)
        if isinstance(taken, int) and taken != channels and (path[0] == "network_g" or _is_gan(opt)):
            yield Problem(path, f"expected {channels}, {gives}, got {taken}")
    path = (*PERCEPTUAL, "input_channels")
    if opt.valid(*PERCEPTUAL, "type") != "DPLoss" or any(bad == path for bad in opt.wrong):
        return
    selected = opt.raw(*path)
    # The loss's networks take three channels.
    if channels == 1 and selected is None:
        yield Problem(path, "expected repeat, which repeats gray images three times, got none")
    elif channels == 3 and selected == "repeat":
        yield Problem(path, f"expected none for images of 3 channels, {gives}, got repeat")


def _colors(opt: View, phase: str) -> Iterator[Problem]:
    """Validation or test sets must have the channels that the network takes."""
    channels = opt.valid("network_g", "num_in_ch") or 3
    for name in opt.valid("datasets") or ():
        kind, color = opt.valid("datasets", name, "type"), opt.valid("datasets", name, "color")
        if not str(name).startswith(phase) or kind not in DATASETS or channels not in (1, 3):
            continue
        if channels != (1 if color == "y" else 3):
            expected, got = ("y", color or "none") if channels == 1 else ("none", "y")
            text = f"expected {expected}, because network_g has num_in_ch: {channels}, got {got}"
            yield Problem(("datasets", name, "color"), text)


def _set_names(opt: View, phase: str) -> Iterator[Problem]:
    """Images, figures and best networks are kept by the name of the set."""
    taken: dict[str, str] = {}
    for key in opt.valid("datasets") or ():
        name = opt.valid("datasets", key, "name")
        if str(key).startswith(phase) and name is not None and taken.setdefault(name, str(key)) != key:
            text = f"expected another name, got {quote(name)}: {taken[name]} has it, and would be mixed with this one"
            yield Problem(("datasets", key, "name"), text)


def _losses(opt: View) -> Iterator[Problem]:
    if not isinstance(opt.raw("train"), dict):
        return
    if opt.raw("train", "pixel_opt") is None and opt.raw("train", "perceptual_opt") is None:
        yield Problem(("train", "pixel_opt"), "expected a pixel loss or a perceptual_opt, got neither")
    if opt.raw("train", "ldl_opt") is not None:
        yield from _ldl(opt)


def _ldl(opt: View) -> Iterator[Problem]:
    """LDL is supported by some models only, and needs the EMA generator."""
    model = members_of(MODEL_REGISTRY).get(opt.valid("model_type"))
    if not isinstance(model, type) or not model.__module__.startswith(("basicsr.", "dp_basicsr.")):
        # Another package's model may compute it.
        return
    if not issubclass(model, (SRGANDPModel, RealESRGANModel)):
        names = "ESRGANDPModel, SRGANDPModel and RealESRGANModel"
        yield Problem(("train", "ldl_opt"), f"expected none: {model.__name__} does not compute it, {names} do")
    elif opt.valid("train", "ema_decay") == 0:
        text = "expected a number > 0 for ldl_opt, which compares with the EMA generator, got 0"
        yield Problem(("train", "ema_decay"), text)


def _balance(opt: View) -> Iterator[Problem]:
    """The shares must be those of the step's losses; the model's own function looks, if nothing else is wrong."""
    if opt.raw("train", "balance") is None or any(path[:1] == ("train",) for path in opt.wrong):
        return
    try:
        # The model's own function, so that the checks and the run cannot disagree.
        build_balancer(opt.raw("train"), _is_gan(opt), opt.raw("train", "gan_opt", "ramp"))
    except UserError as error:
        yield Problem(("train", "balance"), str(error).removeprefix("balance: "))


def _batch(opt: View) -> Iterator[Problem]:
    batch, parts = opt.valid("datasets", "train", "batch_size_per_gpu"), opt.valid("train", "grad_accumulation")
    if isinstance(batch, int) and isinstance(parts, int) and parts > batch:
        yield Problem(("train", "grad_accumulation"), f"expected up to batch_size_per_gpu ({batch}), got {parts}")
    if opt.valid("datasets", "train", "prefetch_mode") == "cuda" and not torch.cuda.is_available():
        path = ("datasets", "train", "prefetch_mode")
        yield Problem(path, "expected ~ or cpu, because there is no GPU here; got cuda")
    # Real-ESRGAN's models exchange whole mini-batches with a pool of pairs, and assert it at the first step.
    queue = opt.raw("queue_size") or 180
    has_queue = hasattr(members_of(MODEL_REGISTRY).get(opt.valid("model_type")), "_dequeue_and_enqueue")
    if has_queue and isinstance(batch, int) and isinstance(queue, int) and queue % batch:
        yield Problem(("queue_size",), f"expected a multiple of batch_size_per_gpu ({batch}), got {queue}")


def find_missing(opt: View, is_train: bool) -> Iterator[Problem]:
    """Find missing files and folders that a run needs; missing validation and test sets are skipped by the run."""
    for key in ("dataroot_gt", "dataroot_lq") if is_train else ():
        root = opt.valid("datasets", "train", key)
        if isinstance(root, str) and not os.path.isdir(os.path.expanduser(root)):
            text = f"expected a folder, got {quote(root)}: no such folder"
            yield Problem(("datasets", "train", key), text, missing=True, help=how_to_get_data())
    for key in ("pretrain_network_g", "pretrain_network_d", *(["resume_state"] if is_train else [])):
        file = opt.valid("path", key)
        if key == "resume_state" and os.path.isdir(f"experiments/{opt.valid('name')}/training_states"):
            # --auto_resume may have a newer one, and keep_last deletes the named one some day.
            continue
        if isinstance(file, str) and not os.path.isfile(os.path.expanduser(file)):
            yield Problem(("path", key), f"expected a file, got {quote(file)}: no such file", missing=True)
    yield from _missing_for_test(opt) if not is_train else ()
    meta = opt.valid("datasets", "train", "meta_info_file") if is_train else None
    if isinstance(meta, str) and not os.path.isfile(os.path.expanduser(meta)):
        path = ("datasets", "train", "meta_info_file")
        yield Problem(path, f"expected a file, got {quote(meta)}: no such file", missing=True)


def _missing_for_test(opt: View) -> Iterator[Problem]:
    """A test needs a network and at least one of its sets."""
    if opt.raw("path", "pretrain_network_g") is None and opt.raw("network_g", "type") != "FromFile":
        text = "expected a net_g_<iteration>.pth, got none: there is nothing to test"
        yield Problem(("path", "pretrain_network_g"), text, missing=True)
    missing = []
    for key in (key for key in opt.valid("datasets") or () if str(key).startswith("test")):
        roots = [opt.valid("datasets", key, name) for name in ("dataroot_gt", "dataroot_lq")]
        gone = [root for root in roots if isinstance(root, str) and not os.path.isdir(os.path.expanduser(root))]
        # One set is enough: a test skips the others.
        if not gone:
            return
        missing.append(f"{opt.valid('datasets', key, 'name')} ({gone[0]})")
    text = f"expected an existing test set, got {f'none of {shorten(missing, 8)}' if missing else 'none'}"
    yield Problem(("datasets",), text, missing=True, help=how_to_get_test_sets())
