"""Validation with reading, image writing and metrics in threads, and large images in tiles."""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dp_basicsr.data.images import encode_png
from dp_basicsr.distributed.collectives import all_gather
from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import replacing
from dp_basicsr.utils.input_size import RRDBNET_FOLDS, InputSize, input_size, pad, run_padded
from dp_basicsr.utils.tiles import Floats, blend_tiles

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

Values = dict[str, float]  # metric -> its value on one image


class ThreadedValidation(BaseModel):
    """Validation with the same numbers and files as BasicSR's, but without making the network wait.

    Threads read the next image and measure and save the previous ones. Several processes share the images; all then
    know all values, and rank 0 logs their mean. ``val: threads`` is the number of images measured at a time; ``tile``
    and ``tile_overlap`` (LR pixels) bound the memory of the network.

    Attributes:
        interrupted: Called before every image; True ends the validation on all processes, without a result.
    """

    interrupted: Callable[[], bool] = staticmethod(lambda: False)
    lq: Tensor
    output: Tensor
    net_g: nn.Module
    _said_unmeasured: frozenset[str] = frozenset()

    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> bool:
        """Run the network on every image, optionally save the results, log each metric's mean and remember the best.

        Means are summed in the order of the images, so they are bit-identical for any number of processes. Collective
        call.

        Returns:
            Whether it was completed; False if it was interrupted.

        Raises:
            UserError: An image cannot be read, measured or written on any process; the message names it.
        """
        self._say_what_is_not_measured(dataloader.dataset)
        measured: dict[int, Values] = {}
        error: UserError | None = None
        try:
            measured = self._validate_share(dataloader, current_iter, save_img)
        except UserError as caught:  # the other processes wait below and must be told
            error = caught
        own = measured, None if error is None else str(error)
        shares = all_gather(own) if self.opt["dist"] else [own]
        for _, message in shares:
            if message is not None:
                raise UserError(message) from error
        values = {index: value for share, _ in shares for index, value in share.items()}
        dataset: Any = dataloader.dataset
        if len(values) < len(dataset):
            return False
        if any(values.values()):
            self._take_results([values[index] for index in range(len(dataset))], dataset.opt["name"], current_iter)
            if self.opt["rank"] == 0:
                self._log_validation_metric_values(current_iter, dataset.opt["name"], tb_logger)
        return True

    def _say_what_is_not_measured(self, dataset: Any) -> None:
        """Log once per set without originals which metrics cannot be computed."""
        name = dataset.opt["name"]
        if dataset.opt.get("dataroot_gt") or name in self._said_unmeasured:
            return
        self._said_unmeasured = self._said_unmeasured | {name}
        metrics = (self.opt["val"].get("metrics") or {}).keys() - usable_metrics(self.opt, has_original=False).keys()
        if metrics:
            get_root_logger().warning(
                f"{name} has no originals (dataroot_gt): {', '.join(sorted(metrics))} cannot be computed"
            )

    def _take_results(self, values: list[Values], dataset_name: str, current_iter: int | str) -> None:
        """Set ``metric_results`` to the means, and ``best_metric_results``, the same on all processes."""
        self._initialize_best_metric_results(dataset_name)
        self.metric_results = {}
        for metric in values[0]:
            total = 0.0
            for value in values:  # not sum(), which rounds differently from Python 3.12 on
                total += value[metric]
            self.metric_results[metric] = total / len(values)
            self._update_best_metric_result(dataset_name, metric, self.metric_results[metric], current_iter)

    def _validate_share(self, dataloader: DataLoader, current_iter: int | str, save_img: bool) -> dict[int, Values]:
        """Validate this process's images: index -> values; incomplete if interrupted."""
        dataset: Any = dataloader.dataset
        val, rank = self.opt["val"], self.opt["rank"]
        indices = range(rank, len(dataset), self.opt["world_size"])
        threads = val["threads"]
        on_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.device.type == "cuda" else None
        bar = tqdm(total=len(indices), unit="image", disable=not val["pbar"] or rank != 0)
        measured: dict[int, Values] = {}
        waiting: deque[tuple[int, str, Future[Values]]] = deque()

        def take_oldest() -> None:
            index, name, values = waiting.popleft()
            measured[index] = values.result()
            bar.set_description(f"Test {name}", refresh=False)
            bar.update()

        with bar, ThreadPoolExecutor(threads, initializer=on_device) as workers:
            for index, sample in read_ahead(dataloader, indices):
                if self.interrupted():
                    break
                name = Path(sample["lq_path"][0]).stem
                result, gt = self._upscale(name, sample)
                path = self._image_path(name, dataset.opt["name"], current_iter) if save_img else None
                if len(waiting) > threads:  # otherwise images would pile up in memory
                    take_oldest()
                waiting.append((index, name, workers.submit(self._measure, name, result, gt, path)))
            while waiting:
                take_oldest()
        return measured

    def _upscale(self, name: str, sample: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the result and the original (None if the set has none), (1, 3, H, W) in [0, 1] on the CPU."""
        self.feed_data(sample)
        try:
            self.test()
        except torch.OutOfMemoryError as error:
            raise UserError(f"validation of {name}: out of memory; set `val: tile: 256` or less") from error
        visuals = self.get_current_visuals()
        del self.lq, self.output
        return visuals["result"], visuals["gt"] if "gt" in sample else None

    @torch.compiler.set_stance("force_eager")  # torch.compile would recompile for each image size
    def test(self) -> None:
        """Set ``self.output`` to the network's result for ``self.lq``; with ``val: tile`` in tiles, on the CPU."""
        val, scale, whole = self.opt.get("val") or {}, self.opt["scale"], self.lq
        size, (height, width) = input_size(self.net_g), whole.shape[-2:]

        def forward(images: Tensor) -> Tensor:
            self.lq = images
            super(ThreadedValidation, self).test()
            return self.output

        def one_tile(rows: slice, columns: slice) -> Floats:
            return run_padded(forward, padded[..., rows, columns], size, scale)[0].float().cpu().numpy()

        if not val.get("tile"):
            self.output, self.lq = run_padded(forward, whole, size, scale), whole
            return
        rows, columns = InputSize(size.multiple).fit(height, width)
        padded = pad(whole, rows, columns)
        fold = RRDBNET_FOLDS.get(scale, 1) if self.opt["network_g"]["type"] == "RRDBNet" else 1
        overlap = val["tile_overlap"] * fold  # pixel-unshuffle enlarges the receptive field
        bands = blend_tiles(one_tile, rows, columns, scale, val["tile"], overlap, size.multiple)
        blended = np.concatenate(list(bands), axis=1)[:, : height * scale, : width * scale]
        self.output, self.lq = torch.from_numpy(np.ascontiguousarray(blended))[None], whole

    def _image_path(self, name: str, dataset_name: str, current_iter: int | str) -> Path:
        """Return BasicSR's path of a saved result."""
        folder = Path(self.opt["path"]["visualization"])
        if self.opt["is_train"]:
            return folder / name / f"{name}_{current_iter}.png"
        return folder / dataset_name / f"{name}_{self.opt['val'].get('suffix') or self.opt['name']}.png"

    def _measure(self, name: str, result: Tensor, gt: Tensor | None, path: Path | None) -> Values:
        """Save and measure one result, in a thread."""
        with naming(name):
            images = {"img": tensor2img([result])}
            if gt is not None:
                images["img2"] = tensor2img([gt])
            if path is not None:
                write_image(images["img"], path)
            metrics = usable_metrics(self.opt, has_original=gt is not None)
            return {metric: value_of(f"{name}: {metric}", images, opt) for metric, opt in metrics.items()}


def value_of(what: str, images: dict[str, NDArray[np.uint8]], metric: dict[str, Any]) -> float:
    """Return a metric's value; NaN, and a warning, where its numbers fail: NIQE has none for a flat image."""
    try:
        return float(calculate_metric(images, metric))
    except np.linalg.LinAlgError as error:
        get_root_logger().warning(f"validation of {what} is n/a: {error}")
        return math.nan


def usable_metrics(opt: dict[str, Any], has_original: bool) -> dict[str, dict[str, Any]]:
    """Return ``val: metrics``; for images without an original only those that need none, such as NIQE."""
    metrics = (opt.get("val") or {}).get("metrics") or {}
    if has_original:
        return metrics
    functions = {name: METRIC_REGISTRY.get(metric["type"]) for name, metric in metrics.items()}
    return {name: metrics[name] for name in metrics if "img2" not in inspect.signature(functions[name]).parameters}


def read_ahead(dataloader: DataLoader, indices: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each index and its sample, a batch of one, while the next one is being read.

    One thread does all the reading, because BasicSR's datasets open their files on first use.

    Raises:
        UserError: A sample cannot be read; the message names its files.
    """
    dataset: Any = dataloader.dataset

    def read(index: int) -> dict[str, Any]:
        try:
            return dataloader.collate_fn([dataset[index]])
        except Exception as error:
            paths = getattr(dataset, "paths", None)  # an attribute of BasicSR's paired datasets
            raise UserError(f"image {paths[index] if paths else index} cannot be used: {error}") from error

    coming: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for index in indices:
            coming.append((index, reader.submit(read, index)))
            if len(coming) > 1:
                first, sample = coming.popleft()
                yield first, sample.result()
        for last, sample in coming:
            yield last, sample.result()


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Add the image's name to errors; errors of a metric's input become a UserError."""
    try:
        yield
    except (AssertionError, ValueError) as error:  # BasicSR's metrics use assertions
        raise UserError(f"validation of {image}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"validation of {image}: {error}") from error


def write_image(image: NDArray[np.uint8], path: Path) -> None:
    """Write ``(H, W[, 3])`` BGR uint8 atomically as a PNG like BasicSR's.

    Raises:
        UserError: The file cannot be written (disk full, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(encode_png(image))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
