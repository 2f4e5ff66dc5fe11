"""Rules for combinations of values, and missing files: where, whether it is so, and the message."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from glob import escape, glob
from typing import Any

from dp_basicsr.archs.perceptual_arch import RESNET_STAGES, RESNET_TYPES, VGG_TYPES, vgg_layers
from dp_basicsr.checks.problems import Path, Problem, Rule, hint, problems_of
from dp_basicsr.checks.view import View
from dp_basicsr.data.datasets import how_to_get_data, how_to_get_test_sets
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.images.files import missing_hint
from dp_basicsr.losses.balance import build_balancer
from dp_basicsr.losses.dual_perceptual_loss import OTHER_LOSSES
from dp_basicsr.models import ESRGANDPModel, SRGANDPModel
from dp_basicsr.options.reading import IN_SINGLE_QUOTES, quote
from dp_basicsr.options.schema import DATASETS, OptionFile, section_in
from dp_basicsr.options.section import OURS
from dp_basicsr.utils.atomic_io import longest_name

import torch
from basicsr.models.realesrgan_model import RealESRGANModel

TRAIN_SET: Path = ("datasets", "train")
PERCEPTUAL: Path = ("train", "perceptual_opt")
_RESIZES = ["up", "down", "keep"]
_KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
# Between what Real-ESRGAN draws; a side of 400 pixels must keep one.
_RANGES = {
    "blur_sigma": (0, 100), "betag_range": (0, 100), "betap_range": (0, 100), "resize_range": (0.01, 100),
    "noise_range": (0, 255), "poisson_scale_range": (0, 100), "jpeg_range": (1, 100),
}  # fmt: skip


def find_conflicts(opt: View, is_train: bool, overridden: Collection[str]) -> Iterator[Problem]:
    """Apply all rules for values; train.py needs more keys, and ``overridden`` are set on the command line."""
    # `--force_yml train:total_iter=10` is how a run is tried out; its milestones lie beyond.
    rules = [_general(opt, is_train), _sets(opt, "val" if is_train else "test"), _feature_layers(opt), _dp_loss(opt)]
    rules += [_schedule(opt, cut_short="train:total_iter" in overridden), _validation(opt), _keys_of_the_model(opt)]
    if is_train:
        rules += [_needed_to_train(opt), _patches_and_channels(opt), _losses(opt), _batch(opt), _degradations(opt)]
    return problems_of(itertools.chain(*rules))


def _general(opt: View, is_train: bool) -> Iterator[Rule]:
    """The GPUs must be there, and the generator's scale that of the data."""
    wanted, there = opt.valid("num_gpu"), torch.cuda.device_count()
    text = f"expected auto or a number from 0 (CPU) to {there} (GPUs here), got {wanted}"
    yield ("num_gpu",), isinstance(wanted, int) and wanted > there, text
    scale = opt.valid("scale")
    # RRDBNet calls it scale, MSRResNet upscale.
    for key in ("scale", "upscale"):
        factor = opt.valid("network_g", key)
        is_other = isinstance(scale, int) and isinstance(factor, int) and factor != scale
        yield ("network_g", key), is_other, f"expected {scale}, the scale of the data, got {factor}"
    dim, heads = (opt.valid("network_g", key) for key in ("embed_dim", "num_heads"))
    is_uneven = opt.raw("network_g", "type") == "SwinIR" and dim and heads and any(dim % count for count in heads)
    text = f"expected a multiple of each of num_heads ({list(heads or ())}), got {dim}"
    yield ("network_g", "embed_dim"), is_uneven, text
    # It is read in validation.
    lacks_window = opt.raw("model_type") == "SwinIRModel" and not opt.raw("network_g", "window_size")
    is_read = lacks_window and (opt.raw("val") or not is_train)
    yield ("model_type",), is_read, "expected PSNRModel for a network_g without window_size, got SwinIRModel"


def _sets(opt: View, phase: str) -> Iterator[Rule]:
    """Sets must be stored as they say; those of the phase need different names, and the channels of the network."""
    # The second is SwinIR's and HAT's.
    channels = opt.valid("network_g", "num_in_ch") or opt.valid("network_g", "in_chans") or 3
    taken: dict[str, Any] = {}  # name -> key
    for key in opt.valid("datasets") or ():
        path = ("datasets", key)
        kind = opt.valid(*path, "io_backend", "type")
        form = "a name ending in .lmdb" if kind == "lmdb" else "a folder of images, not an LMDB,"
        for root in ("dataroot_gt", "dataroot_lq"):
            folder = opt.valid(*path, root)
            # BasicSR recognises an LMDB by the suffix of its name.
            is_other = folder and kind in ("disk", "lmdb") and folder.rstrip("/").endswith(".lmdb") != (kind == "lmdb")
            yield (*path, root), is_other, f"expected {form} for io_backend: {kind}, got {quote(folder)}"
        is_ours = opt.valid(*path, "type") in DATASETS
        given = [part for part in ("mean", "std") if opt.raw(*path, part) is not None]
        yield (*path, *given[:1]), is_ours and len(given) == 1, "expected mean and std or neither, got one of them"
        color = opt.valid(*path, "color")
        for part in given:
            values, count = opt.valid(*path, part), 1 if color == "y" else 3
            fits = values is None or len(values) in (1, count)
            yield (*path, part), is_ours and not fits, f"expected a number for each channel ({count}), got {values}"
        if not str(key).startswith(phase):
            continue
        name = opt.valid(*path, "name")
        # Images, figures and best networks are kept by the name of the set.
        other = taken.setdefault(name, key)
        text = f"expected another name, got {quote(name)}: {other} has it, and would be mixed with this one"
        yield (*path, "name"), name is not None and other != key, text
        expected, got = ("y", color or "none") if channels == 1 else ("none", "y")
        text = f"expected {expected}, because network_g takes {channels} channel(s), got {got}"
        yield (*path, "color"), is_ours and channels in (1, 3) and (channels == 1) != (color == "y"), text


def _terms(opt: View) -> list[Path]:
    """Return the paths of a perceptual loss's extra terms."""
    extra = opt.raw(*PERCEPTUAL, "extra_terms")
    extra = extra if isinstance(extra, list) else []
    return [(*PERCEPTUAL, "extra_terms", number) for number, term in enumerate(extra) if isinstance(term, dict)]


def _feature_layers(opt: View) -> Iterator[Rule]:
    """A perceptual loss must take layers that its networks have: DPLoss, its terms, and BasicSR's PerceptualLoss."""
    networks = [((*PERCEPTUAL, "vgg_layer_weights"), opt.valid(*PERCEPTUAL, "vgg_type"))]
    networks += [((*path, "layer_weights"), opt.valid(*path, "network")) for path in _terms(opt)]
    for path in (PERCEPTUAL, *_terms(opt)):
        if opt.valid(*path, "type") == "PerceptualLoss":
            networks.append(((*path, "layer_weights"), opt.valid(*path, "vgg_type") or "vgg19"))
    for path, network in networks:
        # The layers of other networks are known only when these are built.
        layers: Sequence[str] = RESNET_STAGES if network in RESNET_TYPES else ()
        if network in VGG_TYPES:
            layers = vgg_layers(network)
        for layer in (opt.valid(*path) or ()) if layers else ():
            text = f"expected a layer of {network}, got {quote(layer)}{hint(layer, layers)}"
            yield (*path, layer), layer not in layers, text


def _dp_loss(opt: View) -> Iterator[Rule]:
    """The terms of a DPLoss must have different names, one of them that of the reference."""
    if opt.valid(*PERCEPTUAL, "type") != "DPLoss":
        return
    reference, vgg_layer_weights = (opt.valid(*PERCEPTUAL, key) for key in ("reference", "vgg_layer_weights"))
    if reference == "vgg" and vgg_layer_weights == {}:
        text = "expected at least one layer, or another term as `reference`, got an empty mapping"
        yield (*PERCEPTUAL, "vgg_layer_weights"), True, text
        return
    names = ["vgg"] if vgg_layer_weights else []
    names += ["resnet"] if opt.valid(*PERCEPTUAL, "resnet_layer_weights") else []
    for path in _terms(opt):
        name = opt.valid(*path, "name") or opt.valid(*path, "type") or opt.valid(*path, "network")
        # All are logged side by side, and balance tells them apart by name.
        text = f"expected another name, got {quote(name)}, that of a loss of the step"
        yield (*path, "name"), name in OTHER_LOSSES, text
        yield (*path, "name"), name in names, f"expected a unique name, got {quote(name)}, which another term has"
        names.append(str(name))
    text = f"expected the name of a term, got {quote(reference)}{hint(reference, names)}"
    yield (*PERCEPTUAL, "reference"), isinstance(reference, str) and reference not in names, text


def _schedule(opt: View, cut_short: bool) -> Iterator[Rule]:
    """The schedule must fit the run's length, unless the command line shortened the run for a trial."""
    path = ("train", "scheduler")
    total, warmup = opt.valid("train", "total_iter"), opt.valid("train", "warmup_iter")
    if total is None:
        total = math.inf
    # Schedulers of torch have parameters of the same names, and any values.
    milestones, periods, cycle = (opt.valid(*path, key) for key in ("milestones", "periods", "total_steps"))
    upper = f"expected iterations up to train:total_iter ({total}), got"
    if isinstance(milestones, list):
        unordered = any(later <= earlier for earlier, later in itertools.pairwise(milestones))
        yield (*path, "milestones"), unordered, f"expected increasing iterations, got {quote(milestones)}"
        late = [milestone for milestone in milestones if milestone > total]
        yield (*path, "milestones"), late and not cut_short, f"{upper} {quote(late)}"
    if isinstance(periods, list):
        text = f"expected a sum of at least train:total_iter ({total}), got {sum(periods)}"
        yield (*path, "periods"), sum(periods) < total < math.inf, text
    # OneCycleLR raises when it is stepped beyond its total_steps.
    text = f"expected at least train:total_iter ({total}), got {cycle}"
    yield (*path, "total_steps"), isinstance(cycle, int) and cycle < total < math.inf, text
    yield ("train", "warmup_iter"), warmup is not None and warmup > total and not cut_short, f"{upper} {warmup}"
    # Restarts of the learning rate need one weight each; both have one by default.
    key = "periods" if opt.valid(*path, "type") == "CosineAnnealingRestartLR" else "restarts"
    restarts, weights = opt.valid(*path, key), opt.valid(*path, "restart_weights")
    if isinstance(restarts, (list, tuple)) and isinstance(weights, (list, tuple)):
        text = f"expected {len(restarts)}, one for each of {key}, got {len(weights)}"
        yield (*path, "restart_weights"), len(restarts) != len(weights), text


def _validation(opt: View) -> Iterator[Rule]:
    """Tiles must be larger than their overlaps, what patience watches must be measured, and wandb needs figures."""
    tile, overlap = opt.valid("val", "tile"), opt.valid("val", "tile_overlap")
    is_small = tile is not None and overlap is not None and 2 * overlap >= tile
    yield ("val", "tile"), is_small, f"expected more than twice tile_overlap ({overlap}), got {tile}"
    monitor, metrics = opt.valid("val", "monitor"), opt.valid("val", "metrics") or {}
    sets = [opt.valid("datasets", key, "name") for key in opt.valid("datasets") or () if str(key).startswith("val")]
    longest = longest_name("experiments")
    for name, metric in itertools.product(sets, metrics):
        size = len(f"net_g_best_{name}_{metric}.pth.partial".encode())
        text = f"expected a shorter name: with that of {quote(name)} the best network's file has one of {size} bytes"
        yield ("val", "metrics", metric), size > longest, text
    known = [*metrics, *(f"{name}/{metric}" for name in sets for metric in metrics)]
    for name in [monitor] if isinstance(monitor, str) else monitor or ():
        text = f"expected a metric of val: metrics, or set/metric, got {quote(name)}{hint(name, known)}"
        yield ("val", "monitor"), name not in known, text
    lacks_figures = opt.valid("logger", "wandb", "project") and opt.valid("logger", "use_tb_logger") is False
    text = "expected true: wandb gets its figures from TensorBoard, got false"
    yield ("logger", "use_tb_logger"), lacks_figures, text


def _keys_of_the_model(opt: View) -> Iterator[Rule]:
    """Refuse what BasicSR's own models would silently ignore, and what their losses do not know."""
    if opt.model is None or not opt.is_known_model:
        return
    expected = f"expected none: {opt.model.__name__}"
    for key, owner in (("sync_mean", ESRGANDPModel), ("ramp", SRGANDPModel)):
        is_other = opt.valid("train", "gan_opt", key) is not None and not issubclass(opt.model, owner)
        yield ("train", "gan_opt", key), is_other, f"{expected}'s loss does not support it"
    if opt.model.__module__.startswith("dp_basicsr."):
        return
    for section, field in OptionFile.model_fields.items():
        fields = getattr(section_in(field.annotation), "model_fields", {})
        for key in (key for key in fields if OURS in fields[key].metadata):
            value = opt.valid(section, key)
            # A value equal to the default is harmless: it is what a model without the key does.
            changes = value is not None and value != fields[key].default
            yield (section, key), changes, f"{expected} does not support it, got {quote(value)}"


def _needed_to_train(opt: View) -> Iterator[Rule]:
    """Require the keys that train.py reads unconditionally."""
    needed: list[Path] = [("train",), ("logger",), TRAIN_SET, ("logger", "save_checkpoint_freq")]
    needed += [("val", "val_freq")] if opt.raw("val") is not None else []
    needed += [("network_d",), ("train", "optim_d"), ("train", "gan_opt")] if opt.is_gan else []
    if kind := DATASETS.get(opt.valid(*TRAIN_SET, "type")):
        # Optional in the types, because test sets do not need them.
        patches = ("num_worker_per_gpu", "gt_size", "use_hflip", "use_rot")
        needed += [(*TRAIN_SET, key) for key in patches if key in kind.model_fields]
        lacks_gt = opt.is_known_model and "gt_size" not in kind.model_fields
        yield (*TRAIN_SET, "type"), lacks_gt, "expected a set of pairs, SingleImageDataset has no GT"
    model: Any = opt.model
    degrades = hasattr(model, "_dequeue_and_enqueue") and opt.raw("high_order_degradation") is not False
    lacks_lq = opt.is_known_model and not degrades and opt.raw(*TRAIN_SET, "type") == "RealESRGANDataset"
    text = "RealESRGANDataset has no LQ, which RealESRGANModel and RealESRNetModel make with high_order_degradation"
    yield (*TRAIN_SET, "type"), lacks_lq, f"expected a set of pairs: {text}"
    if opt.is_known_model and hasattr(model, "_dequeue_and_enqueue"):
        # Real-ESRGAN's read keys of their own in a step, those of the degradation only if they make the LQ.
        has_lq = opt.valid(*TRAIN_SET, "type") in DATASETS
        text = "expected false for a set of pairs: by default the model makes the LQ itself, of RealESRGANDataset's GT"
        yield ("high_order_degradation",), degrades and has_lq, text
        steps = [model.optimize_parameters, *([model.feed_data] if degrades and not has_lq else [])]
        needed += [(key,) for key in re.findall(r"self\.opt\['(\w+)'\]", "".join(map(inspect.getsource, steps)))]
    if opt.raw(*TRAIN_SET, "batch_size_total") is None:
        needed.append((*TRAIN_SET, "batch_size_per_gpu"))
    for path in needed:
        is_missing = isinstance(opt.raw(*path[:-1]), dict) and opt.raw(*path) is None
        yield path, is_missing, "expected a value, which training needs, got nothing: it is missing"


def _patches_and_channels(opt: View) -> Iterator[Rule]:
    """Networks and losses must accept the patches of the training set, of 3 channels, or 1 with ``color: y``."""
    size, scale, path = opt.valid(*TRAIN_SET, "gt_size"), opt.valid("scale"), (*TRAIN_SET, "gt_size")
    if isinstance(size, int):
        uneven = isinstance(scale, int) and size % scale
        yield path, uneven, f"expected a multiple of scale ({scale}), got {size}"
        # Its linear layer fits one size only.
        taken = opt.valid("network_d", "type") == "VGGStyleDiscriminator" and opt.valid("network_d", "input_size")
        text = f"expected {taken}, the size that network_d needs (its input_size: 128 or 256), got {size}"
        if taken and isinstance(scale, int) and taken % scale:
            text += f"; {taken} is no multiple of scale ({scale}): give another network_d, such as UNetDiscriminatorSN"
        yield path, opt.is_gan and taken and size != taken, text
    kind, is_gray = opt.valid(*TRAIN_SET, "type"), opt.raw(*TRAIN_SET, "color") == "y"
    if kind not in (*DATASETS, "RealESRGANDataset", "RealESRGANPairedDataset"):
        return
    gives = "as the training set has (3, or 1 with PairedImageDataset's color: y)"
    ignored = is_gray and kind not in DATASETS
    yield (*TRAIN_SET, "color"), ignored, f"expected none: {kind} does not read it, PairedImageDataset does"
    channels = 1 if is_gray and not ignored else 3
    for path in (("network_g", "num_in_ch"), ("network_g", "num_out_ch"), ("network_d", "num_in_ch")):
        taken, is_used = opt.valid(*path), path[0] == "network_g" or opt.is_gan
        is_other = isinstance(taken, int) and taken != channels
        yield path, is_other and is_used, f"expected {channels}, {gives}, got {taken}"
    path = (*PERCEPTUAL, "input_channels")
    if opt.valid(*PERCEPTUAL, "type") == "DPLoss" and path not in opt.wrong:
        # The loss's networks take three channels.
        given, text = opt.raw(*path), "expected repeat, which repeats gray images three times, got none"
        yield path, channels == 1 and given is None, text
        text = f"expected none for images of 3 channels, {gives}, got repeat"
        yield path, channels == 3 and given == "repeat", text


def _losses(opt: View) -> Iterator[Rule]:
    """There must be a loss, LDL needs a model that computes it, and shares must be those of the step's losses."""
    if not isinstance(opt.raw("train"), dict):
        return
    has_none = opt.raw("train", "pixel_opt") is None and opt.raw(*PERCEPTUAL) is None
    yield ("train", "pixel_opt"), has_none, "expected a pixel loss or a perceptual_opt, got neither"
    # Another package's model may compute LDL.
    if opt.raw("train", "ldl_opt") is not None and opt.model is not None and opt.is_known_model:
        computes_it = issubclass(opt.model, (SRGANDPModel, RealESRGANModel))
        names = "ESRGANDPModel, SRGANDPModel and RealESRGANModel"
        text = f"expected none: {opt.model.__name__} does not compute it, {names} do"
        yield ("train", "ldl_opt"), not computes_it, text
        text = "expected a number > 0 for ldl_opt, which compares with the EMA generator, got 0"
        yield ("train", "ema_decay"), computes_it and opt.valid("train", "ema_decay") == 0, text
    if opt.raw("train", "balance") is not None and not any(path[:1] == ("train",) for path in opt.wrong):
        try:
            # The model's own function, so that the checks and the run cannot disagree.
            build_balancer(opt.raw("train"), opt.is_gan, opt.raw("train", "gan_opt", "ramp"))
        except UserError as error:
            yield ("train", "balance"), True, str(error).removeprefix("balance: ")


def _batch(opt: View) -> Iterator[Rule]:
    """The mini-batch must fit its parts, its queue and its machine."""
    batch, parts = opt.valid(*TRAIN_SET, "batch_size_per_gpu"), opt.valid("train", "grad_accumulation")
    # A share of it is known where the number of processes is, in `data/stream.py`.
    batch = batch if opt.raw(*TRAIN_SET, "batch_size_total") is None else None
    too_many = batch is not None and parts is not None and parts > batch
    text = f"expected up to batch_size_per_gpu ({batch}), which it splits, got {parts}"
    yield ("train", "grad_accumulation"), too_many, text
    lacks_gpu = opt.valid(*TRAIN_SET, "prefetch_mode") == "cuda" and not torch.cuda.is_available()
    text = "expected ~ or cpu, because there is no GPU here; got cuda"
    yield (*TRAIN_SET, "prefetch_mode"), lacks_gpu, text
    is_alone = opt.valid(*TRAIN_SET, "prefetch_mode") == "cpu" and opt.valid(*TRAIN_SET, "num_worker_per_gpu") == 0
    text = "expected 1 or more with prefetch_mode: cpu, whose thread would share the training's random state; got 0"
    yield (*TRAIN_SET, "num_worker_per_gpu"), is_alone, text
    # Real-ESRGAN's models exchange whole mini-batches with a pool of pairs, and assert it at the first step.
    queue = 180 if opt.raw("queue_size") is None else opt.raw("queue_size")
    is_uneven = not isinstance(queue, int) or queue < 1 or (batch and queue % batch)
    text = f"expected a multiple of batch_size_per_gpu ({batch or 'the share of batch_size_total'}), got {queue}"
    yield ("queue_size",), hasattr(opt.model, "_dequeue_and_enqueue") and is_uneven, text
    # Its data set cuts or pads every image to a size of its own, and the model cuts its patches from that.
    patch, is_theirs = opt.raw("gt_size"), opt.valid(*TRAIN_SET, "type") == "RealESRGANDataset"
    text = f"expected up to 400, the side of RealESRGANDataset's images, got {patch}"
    yield ("gt_size",), is_theirs and isinstance(patch, int) and patch > 400, text


def _degradations(opt: View) -> Iterator[Rule]:
    """Real-ESRGAN's lists and ranges must be usable: it draws from them, so a few samples would not show it."""
    if not hasattr(opt.model, "_dequeue_and_enqueue") or opt.raw("high_order_degradation") is False:
        return
    # Those of other packages may draw from more.
    if not opt.is_known_model or opt.raw(*TRAIN_SET, "type") != "RealESRGANDataset":
        return
    for end in ("", "2"):
        kinds = opt.raw(*TRAIN_SET, f"kernel_list{end}")
        are_known = isinstance(kinds, list) and kinds != [] and all(kind in _KERNELS for kind in kinds)
        text = f"expected a list of {', '.join(_KERNELS)}, got {quote(kinds)}"
        yield (*TRAIN_SET, f"kernel_list{end}"), not (kinds is None or are_known), text
        shares = {(*TRAIN_SET, f"kernel_prob{end}"): kinds if are_known else [], (f"resize_prob{end}",): _RESIZES}
        for path, names in shares.items():
            given = opt.raw(*path)
            is_other = isinstance(given, list) and names and len(given) != len(names)
            yield path, is_other, f"expected {len(names)} numbers, of {', '.join(names)}; got {quote(given)}"
        for key, (least, most) in _RANGES.items():
            # What the data set draws from must rise.
            path, step = ((*TRAIN_SET, key + end), 1e-9) if key.startswith("b") else ((key + end,), 0)
            given = opt.raw(*path)
            are_two = isinstance(given, list) and [isinstance(side, (int, float)) for side in given] == [True, True]
            fits = are_two and least <= given[0] <= given[1] - step <= most
            text = f"expected [low, high] within {least} to {most}, got {quote(given)}"
            yield path, given is not None and not fits, text


def _why_missing(path: str, kind: str = "network") -> str:
    """Explain a path: a file's, with a variable, with a line break or a tab ("C:\\new\\table"), or a relative one."""
    if os.path.isfile(os.path.expanduser(path)):
        return "; it is a file: name its folder, or unpack it first"
    if "$" in path:
        return "; $ is no variable here: in --force_yml the shell replaces it in double quotes"
    if re.search(r"[\t\n\r\a\b\f\v\0]", path):
        return f"; {IN_SINGLE_QUOTES}"
    if glob(f"{escape(os.path.expanduser(path))} #*"):
        return "; what follows # is a comment: put the path into single quotes"
    return missing_hint(path, kind) or ("" if os.path.isabs(os.path.expanduser(path)) else f" in {os.getcwd()}")


def find_missing(opt: View, is_train: bool) -> Iterator[Problem]:
    """Find missing files and folders that a run needs; missing validation and test sets are skipped by the run."""
    absent: dict[Any, dict[Path, str]] = {}  # set -> those of its folders that there are not
    for key in (key for key in opt.valid("datasets") or () if str(key).startswith("test") != is_train):
        roots = {("datasets", key, name): opt.valid("datasets", key, name) for name in ("dataroot_gt", "dataroot_lq")}
        absent[key] = {path: root for path, root in roots.items()
                       if isinstance(root, str) and not os.path.isdir(os.path.expanduser(root))}  # fmt: skip
    # Of an LMDB all records are used, and what is not validated is not read.
    read = [key for key in absent if key == "train" or ((opt.raw("val") or not is_train) and not absent[key])]
    listed = [key for key in read if opt.valid("datasets", key, "io_backend", "type") != "lmdb"]
    files: list[Path] = [("datasets", key, name) for key in listed for name in ("meta_info_file", "meta_info")]
    # With --auto_resume the run has newer ones, and those that it began with may be gone; else its start names them.
    has_states = is_train and bool(glob(f"experiments/{escape(str(opt.valid('name')))}/training_states/*.state"))
    state = os.path.expanduser(str(opt.valid("path", "resume_state") or "")) if is_train else ""
    if is_train and (not has_states or os.path.isdir(state)):
        files.append(("path", "resume_state"))
    if not has_states and not os.path.isfile(state):
        files += [("path", "pretrain_network_g"), ("path", "pretrain_network_d")]
    # Another package's loss may have other keys of these names.
    losses = [path for path in (PERCEPTUAL, *_terms(opt)) if opt.raw(*path, "type") in (None, "DPLoss", "LPIPSLoss")]
    keys = [(*path, key) for path in losses for key in ("vgg_weights", "resnet_weights", "weights")] if is_train else []
    files += [path for path in keys if opt.valid(*path) not in ("imagenet", "random")]
    for path in files:
        file = opt.valid(*path)
        if isinstance(file, str) and not os.path.isfile(os.path.expanduser(file)):
            kind = "state" if "resume_state" in path else "network"
            way = "; a state's name is experiments/NAME/training_states/5000.state" if kind == "state" else ""
            way += "; without the key all of the set's images are used" * path[-1].startswith("meta_info")
            other = "a folder" if os.path.isdir(file) else "a pipe" if os.path.exists(file) else "no such file"
            what = f"{other}{_why_missing(file, kind)}{way}"
            # A trial does without data and start weights only.
            yield Problem(path, f"expected a file, got {quote(file)}: {what}", missing=path not in keys)

    if is_train:
        for path, root in absent.get("train", {}).items():
            text = f"expected a folder, got {quote(root)}: no such folder{_why_missing(root)}"
            yield Problem(path, text, missing=True, help=how_to_get_data() if "DIV2K" in root else "")
        return
    if opt.raw("path", "pretrain_network_g") is None and opt.raw("network_g", "type") != "FromFile":
        text = "expected a net_g_<iteration>.pth, got none: there is nothing to test"
        yield Problem(("path", "pretrain_network_g"), text, missing=True)
    # One set is enough: a test skips the others.
    if all(absent.values()):
        first = {opt.valid("datasets", key, "name"): next(iter(roots.values())) for key, roots in absent.items()}
        a_file = {root: ", a file: name its folder" for root in first.values() if os.path.isfile(root)}
        missing = [f"{name} ({root}{a_file.get(root, '')})" for name, root in first.items()]
        val = next((key for key in opt.valid("datasets") or () if str(key).startswith("val")), None)
        none = f"none; datasets:{val} is for training: give that section the name test" if val else "none"
        text = f"expected an existing test set, got {f'none of {shorten(missing, 8)}' if missing else none}"
        yield Problem(("datasets",), text, missing=True, help=how_to_get_test_sets())
