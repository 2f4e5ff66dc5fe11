"""Find images that a metric cannot measure before hours of training end at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.lmdb_records import read_meta_info
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.opening import header_size
from dp_basicsr.options.metrics import record_of

from torch.utils.data import DataLoader

Size = tuple[int, ...]  # the shorter and the longer side, which EXIF's orientation does not change


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
            image = f"datasets: {dataset.opt['name']}: {name}"  # type: ignore[attr-defined]
            result = tuple(scale * side for side in lq)
            if gt is not None and (gt[0] < result[0] or gt[1] < result[1]):
                raise UserError(f"{image} is {_text(gt)} pixels, expected at least {_text(result)}, {scale} x its LQ")
            for metric, options in metrics.items():
                border = options.get("crop_border", 0)
                record = record_of(options["type"])
                if record and record.blocks_in(gt or result, border) < record.blocks:
                    needed = f"{record.blocks} x {record.side} x {record.side} pixels inside a border of {border}"
                    raise UserError(
                        f"{image} of {_text(gt or result)} pixels is too small for val: metrics: {metric}, which needs "
                        f"{needed}: remove the image or the metric"
                    )


def _sizes(dataset: Any) -> Iterator[tuple[str, Size, Size | None]]:
    """Yield the name and the sizes of LQ and original (None where there is none) of each image."""
    roots = {key: str(dataset.opt.get(f"dataroot_{key}")) for key in ("lq", "gt")}
    # An LMDB's list has the shapes, (H, W, C), so that its records need not be decoded.
    shapes = {key: read_meta_info(Path(root)).shapes for key, root in roots.items() if root.endswith(".lmdb")}
    for entry in getattr(dataset, "paths", []):
        pair = entry if isinstance(entry, dict) else {"lq_path": entry}
        sizes: dict[str, Size] = {}
        try:
            for key in ("lq", "gt"):
                if path := pair.get(f"{key}_path"):
                    sizes[key] = tuple(sorted(shapes[key][path][:2] if key in shapes else header_size(Path(path))))
        except (BadImageError, KeyError):
            continue
        yield str(pair.get("gt_path", pair["lq_path"])), sizes["lq"], sizes.get("gt")


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
