"""Find images that a metric cannot measure before hours of training end at them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import how_to_make_lq, paths_of
from dp_basicsr.data.lmdb_records import read_meta_info
from dp_basicsr.errors import UserError, first_line
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.opening import header_size
from dp_basicsr.metrics.library_metric import takes_original
from dp_basicsr.metrics.scores import function_of
from dp_basicsr.options.metrics import record_of

import numpy as np
from torch.utils.data import DataLoader


def refuse_small_images(opt: dict[str, Any], loaders: Iterable[DataLoader]) -> None:
    """Raise a UserError for the first validation or test image that is too small for a metric, or for its LQ image.

    Only the headers of image files and the ``meta_info.txt`` of LMDBs are read. What cannot be read is left to the
    validation, which names it.
    """
    scale, metrics = opt["scale"], (opt.get("val") or {}).get("metrics") or {}
    for loader in loaders:
        dataset: Any = loader.dataset
        prefix = f"datasets: {dataset.opt['name']}:"
        roots = {key: str(dataset.opt.get(f"dataroot_{key}")) for key in ("lq", "gt")}
        # An LMDB's list has the shapes, (H, W, C), so that its records need not be decoded.
        shapes = {key: read_meta_info(root).shapes for key, root in roots.items() if root.endswith(".lmdb")}
        images: dict[tuple[int, ...], str] = {}  # size -> one image of it
        saved: dict[str, str] = {}  # name of a result -> its image
        for entry in paths_of(dataset):
            pair = entry if isinstance(entry, dict) else {"lq_path": entry}
            file = pair["lq_path"]
            if saved.setdefault(Path(file).stem, file) != file and (opt.get("val") or {}).get("save_img"):
                raise UserError(f"{prefix} {saved[Path(file).stem]} and {file} have one result: rename one of them")
            # The shorter and the longer side, which EXIF's orientation does not change.
            sizes: dict[str, tuple[int, ...]] = {}
            try:
                for key in ("lq", "gt"):
                    if path := pair.get(f"{key}_path"):
                        sizes[key] = tuple(sorted(shapes[key][path][:2] if key in shapes else header_size(Path(path))))
            except (BadImageError, KeyError):
                for file in filter(os.path.isfile, pair.values()):
                    if os.path.getsize(file) == 0 or not os.access(file, os.R_OK):
                        fault = "may not be read" if os.path.getsize(file) else "has no bytes"
                        raise UserError(f"{prefix} {file} {fault}: copy it again, or remove the pair") from None
                continue
            result = tuple(scale * side for side in sizes["lq"])
            gt = sizes.get("gt", result)
            pixels, needed = (" and ".join(map(str, size)) for size in (gt, result))
            image = f"{prefix} {pair.get('gt_path', file)} with sides of {pixels} pixels"
            if gt[0] < result[0] or gt[1] < result[1]:
                raise UserError(f"{image}: expected at least {needed}, {scale} x its LQ: {how_to_make_lq()}")
            images.setdefault(gt, image)
            for metric, options in metrics.items():
                border, record = options.get("crop_border", 0), record_of(options["type"])
                if record and record.blocks_in(gt, border) < record.blocks:
                    blocks = f"{record.blocks} x {record.side} x {record.side} pixels inside a border of {border}"
                    raise UserError(
                        f"{image} is too small for val: metrics: {metric}, which needs {blocks}: "
                        "remove the image or the metric"
                    )
        if images:
            _refuse_for_libraries(metrics, min(images), images[min(images)])


def _refuse_for_libraries(metrics: dict[str, Any], size: tuple[int, ...], image: str) -> None:
    """Refuse the smallest image of a set if a metric of another library cannot rate its size; only trying tells."""
    # `why_not` has tried 256 x 256 pixels.
    shorter, longer = (min(side, 256) for side in size)
    noise = np.random.default_rng(0).integers(0, 256, (2, shorter, longer, 3), dtype=np.uint8)
    for metric, options in metrics.items():
        kind, keywords = options["type"], {key: value for key, value in options.items() if key != "type"}
        if "/" not in kind or shorter == 256:
            continue
        try:
            function_of(kind)(*noise[: 1 + takes_original(kind)], **keywords)
        except Exception as error:  # each library refuses in its own way
            raise UserError(
                f"{image} cannot be rated by val: metrics: {metric} "
                f"({first_line(error)}): remove the image or the metric"
            ) from error
