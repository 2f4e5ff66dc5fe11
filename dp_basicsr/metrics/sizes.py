"""Find images that a metric cannot measure before hours of training end at them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from dp_basicsr.data.lmdb_records import read_meta_info
from dp_basicsr.errors import UserError
from dp_basicsr.options.metrics import record_of

from PIL import Image
from torch.utils.data import DataLoader

Size = tuple[int, int]  # the shorter and the longer side, which EXIF's orientation does not change


def refuse_small_images(opt: dict[str, Any], loaders: Iterable[DataLoader]) -> None:
    """Refuse validation and test images that are too small for a metric, or for their LQ image.

    Only the headers of image files and the ``meta_info.txt`` of LMDBs are read. What cannot be read is left to the
    validation, which names it.

    Raises:
        UserError: Names the first such image.
    """
    scale, metrics = opt["scale"], (opt.get("val") or {}).get("metrics") or {}
    for dataset in (loader.dataset for loader in loaders):
        for name, lq, gt in _sizes(dataset):
            where = f"datasets: {dataset.opt['name']}: {name}"  # type: ignore[attr-defined]
            result = scale * lq[0], scale * lq[1]
            if gt is not None and (gt[0] < result[0] or gt[1] < result[1]):
                raise UserError(f"{where} is {_text(gt)} pixels, expected at least {_text(result)}, {scale} x its LQ")
            for metric, options in metrics.items():
                border = options.get("crop_border", 0)
                record = record_of(options["type"])
                if record and record.blocks_in(gt or result, border) < record.blocks:
                    needed = f"{record.blocks} x {record.side} x {record.side} pixels inside a border of {border}"
                    raise UserError(
                        f"{where} of {_text(gt or result)} pixels is too small for val: metrics: {metric}, which needs "
                        f"{needed}: remove the image or the metric"
                    )


def _sizes(dataset: Any) -> Iterator[tuple[str, Size, Size | None]]:
    """Yield the name and the sizes of LQ and original (None where there is none) of each image."""
    roots = {"lq_path": dataset.opt.get("dataroot_lq"), "gt_path": dataset.opt.get("dataroot_gt")}
    shapes = {key: read_meta_info(root).shapes if str(root).endswith(".lmdb") else None for key, root in roots.items()}

    def size(key: str, path: str) -> Size:
        # An LMDB's list has the shapes, so that its records need not be decoded.
        known = shapes.get(key)
        if known is not None:
            height, width, _ = known[path]
        else:
            with Image.open(path) as image:
                width, height = image.size
        return min(width, height), max(width, height)

    for entry in getattr(dataset, "paths", []):
        pair = entry if isinstance(entry, dict) else {"lq_path": entry}
        lq = gt = None
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # Pillow raises what it happens to meet
            warnings.simplefilter("ignore")
            lq, gt = (size(key, pair[key]) if key in pair else None for key in ("lq_path", "gt_path"))
        if lq is not None:
            yield str(pair.get("gt_path", pair["lq_path"])), lq, gt


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
