"""What valid options ask for and a run will not do: said before its first iteration and by ``--check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import Any

from dp_basicsr.checks.problems import Path, Problem, Rule, problems_of
from dp_basicsr.checks.signatures import members_of
from dp_basicsr.data.datasets import missing_folders
from dp_basicsr.data.downloads.catalogue import SOURCES
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import find_images, missing_hint
from dp_basicsr.images.strict import has_georeference, lost_colours
from dp_basicsr.models.base import PluginModel
from dp_basicsr.options.metrics import record_of
from dp_basicsr.options.schema import OptionFile, Val
from dp_basicsr.options.section import Section
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.pool import available_cpus

from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import MODEL_REGISTRY

# What training does not read, by a sign of it in the message of strict reading.
_LOST = {
    "16 bits": "of 16-bit images the upper 8 bits are read; values of 12 bits need magick A -evaluate multiply 16 B",
    "is CMYK": "of CMYK images the colour profile is ignored: convert them to RGB",
    "(flatten it)": "of images with alpha the colours alone are read, and evaluation refuses them: flatten them",
}


def find_notes(options: OptionFile, is_train: bool) -> Iterator[Problem]:
    """Find what is asked for without effect, with the reason."""
    sets, val = options.sets("val" if is_train else "test"), options.val
    missing = {key: folders for key, dataset in sets.items() if (folders := missing_folders(dataset.as_dict()))}
    for key, folders in missing.items():
        hint = missing_hint(folders[0])
        text = f"{sets[key].name} is skipped: no such folder: {' and '.join(folders)}{hint}"
        gt, lq = (File(root or "") for root in (sets[key].dataroot_gt, sets[key].dataroot_lq))
        if gt.name and gt.is_dir() and lq.suffix != ".lmdb" and not hint:
            make = advise("data lr", ["-i", str(gt), "-o", str(lq), "--scale", str(options.scale)])
            text += f"; `{make}` makes it"
        elif (paper := gt.parent.name.lower()) in SOURCES:
            text += f"; `{advise('data download', paper)}` gets it"
        yield Problem(("datasets", key), text)
    yield from problems_of(_about_images(options.datasets if is_train else sets))
    if not is_train:
        return
    lacking = ""
    if not sets:
        lacking = "no validation set (datasets: val ...)"
    elif val is None:
        lacking = "no `val:` section"
    elif missing.keys() == sets.keys():
        lacking = "no validation set that exists"
    # A run without sets and without `val:` asks for no validation, so there is nothing to say.
    if lacking and (sets or val is not None):
        path: Path = ("datasets", next(iter(sets))) if val is None else ("val",)
        yield Problem(path, f"there is no validation, because there is {lacking}")
    model = members_of(MODEL_REGISTRY).get(options.model_type)
    rules = [*(_about_validation(val) if val and not lacking else ()), *_about_training(options, model)]
    lacking = lacking or ("" if val and val.metrics else "no metric (val: metrics)")
    if isinstance(model, type) and not issubclass(model, PluginModel):
        lacking = lacking or f"no code for it in {options.model_type}"
    rules.append((("logger", "keep_best"), lacking, f"no best network is kept, because there is {lacking}"))
    if val and val.monitor is not None:
        named = {name.rpartition("/")[0] for name in ([val.monitor] if isinstance(val.monitor, str) else val.monitor)}
        lacking = lacking or "no figure that val: monitor names" * (named <= {sets[key].name for key in missing})
    rules.append((("val", "patience"), lacking, f"the training does not end early, because there is {lacking}"))
    yield from problems_of((path, holds and _is_given(options, path), reason) for path, holds, reason in rules)


def _about_validation(val: Val) -> Iterator[Rule]:
    for key in ("monitor", "min_delta"):
        yield ("val", key), val.patience is None, "without effect, because there is no val: patience"
    nothing = not val.metrics and not val.save_img
    yield ("val", "val_freq"), nothing, "validation leaves nothing: there are no metrics, and save_img is false"
    for name, metric in (val.metrics or {}).items():
        is_known = "better" in metric or "/" in metric["type"] or record_of(metric["type"])
        text = f"higher is taken as better, as it is not known of {metric['type']}: set better to higher or lower"
        yield ("val", "metrics", name), not is_known, text
    yield ("val", "tile_overlap"), val.tile is None, "without effect, because there is no val: tile"


def _about_training(options: OptionFile, model: object) -> Iterator[Rule]:
    train, logger, data = options.training, options.logs, options.datasets["train"]
    total = train.total_iter
    # Another package's model may have a discriminator of its own, so only what surely has none is named.
    plain = isinstance(model, type) and issubclass(model, SRModel) and not issubclass(model, SRGANModel)
    unused = f"without effect, because {options.model_type} has no discriminator"
    keys = [("train", key) for key in ("optim_d", "gan_opt", "net_d_iters", "net_d_init_iters")]
    for path in (*keys, ("network_d",), ("path", "pretrain_network_d")):
        yield path, plain, unused
    # BasicSR's rule: a multiple of net_d_iters above net_d_init_iters.
    first = (train.net_d_init_iters // train.net_d_iters + 1) * train.net_d_iters
    key = "net_d_init_iters" if train.net_d_init_iters else "net_d_iters"
    never = f"the generator is never updated: its first update would be iteration {first} of {total}"
    yield ("train", key), not plain and first > total, never
    # Another package's model may have more losses.
    if isinstance(model, type) and model.__module__.startswith(("basicsr.", "dp_basicsr.")):
        losses = {"pixel_opt": train.pixel_opt, "perceptual_opt": train.perceptual_opt}
        losses |= {} if plain else {"gan_opt": train.gan_opt, "ldl_opt": train.ldl_opt}
        given = {key: loss for key, loss in losses.items() if loss}
        nothing = f"the generator is not trained: the weight of {' and '.join(given)} is 0"
        # BasicSR's PerceptualLoss has two weights, of features and of style, and others none.
        names = {"PerceptualLoss": {"perceptual_weight": 1, "style_weight": 0}}
        defaults = [(loss, names.get(loss["type"], {"loss_weight": 1})) for loss in given.values()]
        weights = [loss.get(name, default) for loss, keys in defaults for name, default in keys.items()]
        yield ("train", next(iter(given))), not any(weights), nothing
    loss = train.perceptual_opt or {}
    rules = [loss, *(loss.get("extra_terms") or ())]  # a term may have a rule of its own
    holds = loss.get("type") == "DPLoss" and all(rule.get("dynamic_weighting", True) for rule in rules)
    text = "without effect, because dynamic_weighting is true (the default)"
    yield ("train", "perceptual_opt", "static_weight"), holds, text
    share, fit = train.ema_decay**total, 0.01 ** (1 / total)
    text = f"after {total} iterations {share:.0%} of the average are the first weights: {fit:.6g} leaves 1%"
    yield ("train", "ema_decay"), share > 0.5, text
    schedule = {"total_iters": 5, **(train.scheduler or {})}  # PolynomialLR's default
    for kind, key, rate in (("CosineAnnealingLR", "T_max", "rises again"), ("PolynomialLR", "total_iters", "is 0")):
        end = schedule[key] if schedule.get("type") == kind else total
        text = f"the learning rate {rate} after iteration {end}, before total_iter ({total}): set {key}"
        yield ("train", "scheduler"), end < total, text
    yield ("logger", "print_freq"), logger.print_freq > total, f"no losses are logged: it is above total_iter ({total})"
    text = f"no state to resume from is saved before the end: it is above total_iter ({total})"
    yield ("logger", "save_checkpoint_freq"), (logger.save_checkpoint_freq or 0) > total, text
    yield ("name",), "$" in options.name, "$ is no variable here: the folders are called so"
    text = "without effect, because TensorBoard leaves out names with `debug`"
    yield ("logger", "use_tb_logger"), "debug" in options.name, text
    yield ("logger", "wandb", "resume_id"), logger.wandb_project is None, "without effect, because there is no project"
    for key, condition, reason in (
        ("num_prefetch_queue", data.prefetch_mode != "cpu", "prefetch_mode is not cpu"),
        ("max_bad_share", data.on_bad_image == "stop", "on_bad_image is stop"),
        ("batch_size_per_gpu", data.batch_size_total is not None, "batch_size_total is used"),
    ):
        yield ("datasets", "train", key), condition, f"without effect, because {reason}"
    too_many = (data.num_worker_per_gpu or 0) > (cpus := available_cpus())
    yield ("datasets", "train", "num_worker_per_gpu"), too_many, f"more workers than {cpus}, this process's CPUs"
    for name, dataset in options.datasets.items():
        whole = name != "train" and dataset.type == "PairedImageDataset"
        yield ("datasets", name, "gt_size"), whole, "without effect: whole images are measured"
        patch, is_theirs = options.as_dict().get("gt_size"), dataset.type == "RealESRGANDataset"
        text = f"without effect: patches have the gt_size of the first level, {patch}"
        yield ("datasets", name, "gt_size"), is_theirs and patch not in (None, dataset.as_dict().get("gt_size")), text
        for key in ("blur_kernel_size", "blur_kernel_size2"):
            other = is_theirs and dataset.as_dict().get(key) != 21
            yield ("datasets", name, key), other, "without effect: RealESRGANDataset draws kernels of 7 to 21 pixels"
        lmdb = dataset.io_backend is not None and dataset.io_backend.type == "lmdb"
        for key in ("meta_info_file", "filename_tmpl"):
            yield ("datasets", name, key), lmdb, "without effect: of an LMDB all records are used, by their keys"


def _about_images(sets: Mapping[str, Any]) -> Iterator[Rule]:
    for name, dataset in sets.items():
        lmdb = dataset.io_backend is not None and dataset.io_backend.type == "lmdb"
        for key in ("dataroot_gt", "dataroot_lq"):
            root, text, has_place = getattr(dataset, key, None), "", False
            try:
                if root and not lmdb:
                    # The first one: the others of the folder are taken to be like it.
                    path = find_images(File(root).expanduser())[0]
                    has_place = key == "dataroot_lq" and name != "train" and has_georeference(path)
                    text = lost_colours(path)
            except (UserError, OSError) as error:
                text = next((lost for sign, lost in _LOST.items() if sign in str(error)), "")
            yield ("datasets", name, key), text != "", text
            yield ("datasets", name, key), has_place, "results are saved without the georeference, which upscale keeps"
        gt, lq = (File(root or "") for root in (dataset.dataroot_gt, dataset.dataroot_lq))
        one = dataset.type == "PairedImageDataset" and gt == lq != File()
        yield ("datasets", name, "dataroot_lq"), one, "the folder of the GT, which are their own LQ"
        for key, neutral in (("mean", 0), ("std", 1)):
            text = "validation, test and upscale do not undo it: figures and images are wrong; leave out mean and std"
            yield ("datasets", name, key), bool({*(getattr(dataset, key, None) or ())} - {neutral}), text


def _is_given(options: OptionFile, path: Path) -> bool:
    """Whether a key is set, and not to its default or to None."""
    value: Any = options
    default: Any = None
    for key in path:
        # Entries are mappings without defaults; sections have attributes and know theirs.
        fields = type(value).model_fields if isinstance(value, Section) else {}
        default = fields[key].get_default() if key in fields and not fields[key].is_required() else None
        value = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    return value is not None and value != default
