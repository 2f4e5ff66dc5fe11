"""Validation with reading, image writing and metrics in threads, and large images in tiles."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import files_of
from dp_basicsr.data.seeded import is_undecodable
from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.errors import UserError, describe, first_line, is_out_of_memory, message_of_others, shorten
from dp_basicsr.images.strict import encode_png
from dp_basicsr.metrics.scores import better_of, function_of
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.atomic_io import replacing
from dp_basicsr.utils.input_size import run_padded
from dp_basicsr.utils.network_size import input_size
from dp_basicsr.utils.tiles import Floats, blend_tiles

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, tensor2img
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

NOT_FINITE = "the network gives values that are not finite: its weights are not usable"
WORST = {"higher": -math.inf, "lower": math.inf}  # `better` of a metric -> the value before the first one

Values = dict[str, float]  # metric -> its value on one image
Measured = tuple[str, Values]  # with the image's name


class Validator:
    """Validation with the same numbers and files as BasicSR's, but without making the network wait.

    Threads read the next image and measure and save the previous ones. Several processes share the images; all then
    know all values, and rank 0 logs their mean. ``val: threads`` is the number of images measured at a time; ``tile``
    and ``tile_overlap`` (LR pixels) bound the memory of the network.

    Attributes:
        interrupted: Called before every image; True ends the validation on all processes, without a result.
        results: Mean of each metric in the last validation.
        best: The best mean of each set and metric, with its iteration: the state of this object.
    """

    def __init__(self, opt: Mapping[str, Any], device: torch.device) -> None:
        self.opt = opt
        self.device = device
        self.interrupted: Callable[[], bool] = lambda: False
        self.results: Values = {}
        self.best: dict[str, dict[str, dict[str, Any]]] = {}
        self.is_start = False  # the next validation is of the start weights, and no best one
        self.color_shifts: dict[str, float] = {}  # set -> levels between the mean colours of SR and LQ, of this process
        self._named: set[str] = set()  # sets whose metrics without originals have been logged

    def state_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the best results."""
        return self.best

    def load_state_dict(self, best: dict[str, dict[str, dict[str, Any]]]) -> None:
        """Restore the best results of the metrics that are still computed; raise a UserError on other content."""
        metrics = (self.opt.get("val") or {}).get("metrics") or {}
        self.best = {
            name: {metric: figure for metric, figure in record.items() if metric in metrics}
            for name, record in best.items()
        }
        figures = [figure for record in self.best.values() for figure in record.values()]
        if any(figure.keys() != {"better", "val", "iter"} or figure["better"] not in WORST for figure in figures):
            raise UserError("its best_metric_results are not those of a validation")

    def validate(
        self, net: nn.Module, dataloader: DataLoader, iteration: int | str, tb_logger: Any, save_img: bool = False
    ) -> bool:
        """Run the network on every image, optionally save the results, log each metric's mean and remember the best.

        Means are summed in the order of the images, so they are bit-identical for any number of processes. Collective
        call. A UserError names an image that cannot be read, measured or written on any process.

        Returns:
            Whether it was completed; False if it was interrupted.
        """
        dataset: Any = dataloader.dataset
        name = dataset.opt["name"]
        metrics = usable_metrics(self.opt, bool(dataset.opt.get("dataroot_gt")))
        unusable = (self.opt["val"].get("metrics") or {}).keys() - metrics.keys()
        if unusable and name not in self._named:
            self._named.add(name)
            name_unusable(name, unusable)
        if self.opt["dist"]:
            # Batch-norm's statistics are of each process's own images; rank 0's are saved. Others may differ in size.
            saved = net.state_dict()
            for buffer in [value for key, value in net.named_buffers() if key in saved]:
                distributed.broadcast(buffer, src=0)
        share: dict[int, Measured] | UserError
        try:
            share = self._validate_share(net, dataloader, iteration, save_img)
        except UserError as error:  # the other processes wait below and must be told
            share = error
        images: dict[int, Measured] = {}
        for measured in all_gather(share) if self.opt["dist"] else [share]:
            if isinstance(measured, UserError):
                raise measured
            images |= measured
        if len(images) < len(dataset):
            return False
        if any(values for _, values in images.values()):
            self._take_results([images[index] for index in range(len(dataset))], name, iteration, tb_logger)
        return True

    def _take_results(self, images: Sequence[Measured], dataset: str, iteration: int | str, tb_logger: Any) -> None:
        """Set ``results`` to the means, and update ``best``, the same on all processes; log them on rank 0."""
        self.results = {}
        for metric in images[0][1]:
            every = [values[metric] for _, values in images]
            # Of the finite ones: one perfect (inf) or unmeasurable image (NaN) must not hide the others.
            finite, total = [value for value in every if math.isfinite(value)] or every, 0.0
            for value in finite:  # not sum(), which rounds differently from Python 3.12 on
                total += value
            self.results[metric] = total / len(finite)
        for metric, options in self.opt["val"]["metrics"].items():
            better = options.get("better") or better_of(options["type"])
            new = {"better": better, "val": WORST[better], "iter": -1}
            record = self.best.setdefault(dataset, {}).setdefault(metric, new)
            mean = self.results.get(metric, math.nan)
            # An infinite mean (every image is perfect) could never be surpassed; the iteration of a test is its name.
            is_best = mean >= record["val"] if better == "higher" else mean <= record["val"]
            if is_best and math.isfinite(mean) and not self.is_start and isinstance(iteration, int):
                record |= {"val": mean, "iter": iteration}
        if self.opt["rank"] != 0:
            return
        lines = [f"Validation {dataset}"]
        for metric, mean in self.results.items():
            best = self.best[dataset][metric]
            best_text = f"\tBest: {best['val']:.4f} @ {best['iter']} iter" if best["iter"] != -1 else ""
            lines.append(f"\t # {metric}: {mean:.4f}{best_text}")
            if tb_logger:
                tb_logger.add_scalar(f"metrics/{dataset}/{metric}", mean, iteration)
            if unmeasured := [name for name, values in images if not math.isfinite(values[metric])]:
                text = f"{metric} of {len(unmeasured)} of {len(images)} images not finite, and not in the mean"
                lines.append(f"\t   {text}: {shorten(unmeasured)}")
        get_root_logger().info("\n".join([*lines, ""]))

    def _validate_share(
        self, net: nn.Module, dataloader: DataLoader, iteration: int | str, save_img: bool
    ) -> dict[int, Measured]:
        """Validate this process's images: index -> values; incomplete if interrupted."""
        dataset: Any = dataloader.dataset
        val, rank = self.opt["val"], self.opt["rank"]
        indices = range(rank, len(dataset), self.opt["world_size"])
        on_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.device.type == "cuda" else None
        bar = tqdm(total=len(indices), unit="image", disable=not val["pbar"] or rank != 0)
        measured: dict[int, Measured] = {}
        waiting: deque[tuple[int, str, Future[Values]]] = deque()
        shifts: list[Tensor] = []
        flat = 0  # results of almost one colour

        with bar, ThreadPoolExecutor(val["threads"], initializer=on_device) as workers:
            for index, sample in chain(read_ahead(dataloader, indices), [(None, {})]):
                # Otherwise images would pile up in memory; after the last one, all are awaited.
                while waiting and (index is None or len(waiting) > val["threads"]):
                    number, name, values = waiting.popleft()
                    measured[number] = name, values.result()
                    bar.set_description(f"Test {name}", refresh=False)
                    bar.update()
                if index is None or self.interrupted():
                    break
                name = Path(sample["lq_path"][0]).stem
                path = None
                if save_img:  # BasicSR's paths
                    folder, suffix = Path(self.opt["path"]["visualization"]), val.get("suffix") or self.opt["name"]
                    path = folder / dataset.opt["name"] / f"{name}_{suffix}.png"
                    if self.opt["is_train"]:
                        path = folder / name / f"{name}_{iteration}.png"
                try:
                    result = self.upscale(net, as_float(sample["lq"], self.device)).cpu()
                except Exception as error:  # of any type: other channels, sizes that it cannot take
                    if is_out_of_memory(error):
                        raise UserError(f"validation of {name}: out of memory; set `val: tile: 256` or less") from error
                    shape = tuple(sample["lq"].shape)
                    text = f"validation of {name}: the network cannot take its image {shape}: {describe(error)}"
                    raise UserError(text) from error
                if result.shape[1] == sample["lq"].shape[1]:  # a mean colour is that of the downscaled image, too
                    lq = as_float(sample["lq"], torch.device("cpu"))
                    shifts.append(result.clamp(0, 1).mean((0, 2, 3)).float() - lq.mean((0, 2, 3)))
                    contrast, before = (image.float().std((0, 2, 3)).mean() for image in (result.clamp(0, 1), lq))
                    flat += bool(contrast < 0.1 * before)
                gt = as_float(sample["gt"], torch.device("cpu")) if "gt" in sample else None
                waiting.append((index, name, workers.submit(self._measure, path, name, result, gt)))
        if shifts:
            self.color_shifts[dataset.opt["name"]] = 255 * torch.stack(shifts).mean(0).abs().max().item()
        # Of random weights, at the start, it says nothing.
        if 0 < flat == len(shifts) and iteration != 0 and (key := f"flat {dataset.opt['name']}") not in self._named:
            self._named.add(key)
            get_root_logger().warning(
                f"Each result of {dataset.opt['name']} is almost one colour, below a tenth of its LQ's contrast: the "
                "network has collapsed, or learned nothing yet; try lower learning rates, from earlier weights."
            )
        return measured

    @torch.compiler.set_stance("force_eager")  # torch.compile would recompile for each image size
    @torch.no_grad()
    def upscale(self, net: nn.Module, lq: Tensor) -> Tensor:
        """Return a network's result in eval mode for ``lq``, (1, C, H, W); with ``val: tile`` in tiles, on the CPU."""
        val, scale = self.opt.get("val") or {}, self.opt["scale"]
        size, (height, width) = input_size(net), lq.shape[-2:]
        training = net.training
        net.eval()
        try:
            if not val.get("tile"):
                return run_padded(net, lq, size, scale)

            def run_tile(rows: slice, columns: slice) -> Floats:
                return run_padded(net, lq[..., rows, columns], size, scale)[0].float().cpu().numpy()

            def name_seams(reason: str) -> None:
                if "tiles" not in self._named:
                    self._named.add("tiles")
                    get_root_logger().warning(f"val: tile: {reason}; leave tile out, or raise it and tile_overlap")

            bands = blend_tiles(
                run_tile, height, width, scale, val["tile"], val["tile_overlap"], size, on_seam=name_seams
            )
            return torch.from_numpy(np.concatenate(list(bands), axis=1))[None]
        finally:
            net.train(training)

    def _measure(self, path: Path | None, name: str, result: Tensor, gt: Tensor | None) -> Values:
        """Save and measure one result, in a thread; its name is added to all errors."""
        metrics = usable_metrics(self.opt, has_original=gt is not None)
        # As 8 bits it would be black, which has a PSNR.
        if not result.isfinite().all():
            if self.opt["is_train"]:
                return dict.fromkeys(metrics, math.nan)
            raise UserError(f"{name}: {NOT_FINITE}")
        images = {"img": tensor2img([result])}
        if gt is not None:
            images["img2"] = tensor2img([gt])
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_bytes(encode_png(images["img"]))
            except OSError as error:
                raise UserError(f"validation of {name}: {path} cannot be written ({error.strerror})") from error
        try:
            return {metric: value_of(f"{name}: {metric}", images, opt) for metric, opt in metrics.items()}
        except (AssertionError, ValueError) as error:  # BasicSR's metrics use assertions
            raise UserError(f"validation of {name}: {error}") from error
        except Exception as error:  # others' metrics raise anything
            raise UserError(f"validation of {name}: {describe(error)}") from error


def as_float(images: Tensor, device: torch.device) -> Tensor:
    """Move images to a device; convert uint8 to float32 in [0, 1], bit-identical to BasicSR's datasets."""
    images = images.to(device, non_blocking=True)
    # Divide by a tensor: for a Python number, CUDA multiplies by 1 / 255, which rounds differently.
    return images if images.is_floating_point() else images.float() / torch.full((), 255.0, device=device)


def value_of(what: str, images: dict[str, NDArray[np.uint8]], metric: dict[str, Any]) -> float:
    """Return a metric's value; NaN, and a warning, where its numbers fail: NIQE has none for a flat image."""
    try:
        return float(calculate_metric(images, metric))
    except np.linalg.LinAlgError as error:
        get_root_logger().warning(f"validation of {what} is n/a: {error}")
        return math.nan


def validate(model: Any, loader: DataLoader, iteration: int | str, tb_logger: Any, save_img: bool) -> Any:
    """Call a model's ``validation``; BasicSR's models, too, measure a set without originals by what needs none."""
    val, opt = model.opt["val"], loader.dataset.opt  # type: ignore[attr-defined]
    # Sets of other packages may name their originals otherwise.
    wanted, usable = val.get("metrics") or {}, usable_metrics(model.opt, opt.get("type") != "SingleImageDataset")
    if hasattr(model, "validator"):
        return model.validation(loader, iteration, tb_logger, save_img)
    if usable != wanted:
        name_unusable(opt["name"], wanted.keys() - usable.keys())
    # BasicSR keeps the names of the first set's metrics for all sets.
    vars(model).pop("metric_results", None)

    def refuse_not_finite(net: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            if not model.opt["is_train"]:
                raise UserError(f"{opt['name']}: {NOT_FINITE}")
            # BasicSR adds the images' values to these.
            for metric in vars(model).get("metric_results", ()):
                model.metric_results[metric] += math.nan

    nets = [net for net in (getattr(model, key, None) for key in ("net_g_ema", "net_g")) if isinstance(net, nn.Module)]
    hooks = [net.register_forward_hook(refuse_not_finite) for net in nets[:1]]
    try:
        model.opt["val"] = {"suffix": None} | val | {"metrics": usable or None}
        return model.validation(loader, iteration, tb_logger, save_img)
    finally:
        model.opt["val"] = val
        for hook in hooks:
            hook.remove()


def name_unusable(name: str, metrics: Iterable[str]) -> None:
    get_root_logger().warning(f"{name} has no originals (dataroot_gt): {', '.join(sorted(metrics))} cannot be computed")


def usable_metrics(opt: Mapping[str, Any], has_original: bool) -> dict[str, dict[str, Any]]:
    """Return ``val: metrics``; for images without an original only those that need none, such as NIQE."""
    metrics = (opt.get("val") or {}).get("metrics") or {}
    if has_original:
        return metrics
    functions = {name: function_of(metric["type"]) for name, metric in metrics.items()}
    return {name: metrics[name] for name in metrics if "img2" not in inspect.signature(functions[name]).parameters}


def read_ahead(dataloader: DataLoader, indices: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each index and its sample, a batch of one, while the next one is being read.

    One thread does all the reading, because BasicSR's datasets open their files on first use. A UserError names the
    files of a sample that cannot be read.
    """
    dataset: Any = dataloader.dataset
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(dataset.__getitem__, index) for index in indices[:1]]
        for index, following in zip_longest(indices, indices[1:]):
            sample = coming.pop()
            if following is not None:
                coming.append(reader.submit(dataset.__getitem__, following))
            try:
                batch = dataloader.collate_fn([sample.result()])
            except Exception as error:
                entry = getattr(dataset, "paths", {index: index})[index]  # an attribute of BasicSR's datasets
                files = [str(name) for name in files_of(entry)]
                reason = message_of_others(error) or first_line(error)
                if is_undecodable(error):
                    reason = (
                        f"one is missing or does not decode; `{advise('data check', '-opt FILE')}` tells which and why"
                    )
                raise UserError(f"image {' with '.join(files)} cannot be used: {reason}") from error
            yield index, batch
