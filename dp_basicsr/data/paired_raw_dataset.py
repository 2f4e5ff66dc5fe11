"""Training pairs from memory-mapped raw LMDBs: crops are copied, nothing is decoded."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info, view_planes
from dp_basicsr.errors import UserError
from dp_basicsr.registration import register
from dp_basicsr.utils.arguments import advise

import numpy as np
import torch
from basicsr.data.data_util import paired_paths_from_lmdb
from torch.utils.data import Dataset

# Options of PairedImageDataset that raw records do not support.
_NOT_TAKEN = ("color", "mean", "std", "meta_info_file", "filename_tmpl")


@register("dataset")
class PairedRawDataset(Dataset):
    """BasicSR's PairedImageDataset for training on raw LMDBs: the same samples for the same random state.

    Args:
        opt: ``dataroot_gt``, ``dataroot_lq`` (raw LMDBs with the same keys), ``gt_size``, ``scale``, ``use_hflip``,
            ``use_rot``, ``phase`` (train).

    Raises:
        UserError: The phase is not ``train``, an LMDB has PNG records, or an option is not supported. BasicSR's
            ValueError and OSError if the LMDBs do not match or do not exist.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        if opt["phase"] != "train":
            raise UserError("PairedRawDataset is for training only: use type: PairedImageDataset for whole images")
        # The template "{}" changes nothing.
        given = [name for name in _NOT_TAKEN if opt.get(name) not in (None, "{}")]
        if given:
            raise UserError(f"PairedRawDataset does not support {', '.join(given)}: remove the key")
        if (opt.get("io_backend") or {"type": "lmdb"})["type"] != "lmdb":
            raise UserError("PairedRawDataset reads raw LMDBs only: set io_backend: {type: lmdb}")
        roots = [str(opt["dataroot_lq"]), str(opt["dataroot_gt"])]
        self.paths: list[dict[str, str]] = paired_paths_from_lmdb(roots, ["lq", "gt"])
        self._shapes = []
        for root in roots:
            info = read_meta_info(root)
            if not info.raw:
                raw = f"{root.removesuffix('.lmdb')}_raw.lmdb"
                command = advise("data lmdb", ["-i", root, "-o", raw, "--lmdb", "raw"])
                raise UserError(
                    f"PairedRawDataset reads raw records, but {root} has PNG: use type: PairedImageDataset, or convert "
                    f"it with `{command}`"
                )
            self._shapes.append(info.shapes)
        self._readers = [lmdb_reader(root) for root in roots]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample that Python's global random state gives; see ``sample``."""
        return self.sample(index, random)

    def sample(self, index: int, rng: random.Random | ModuleType) -> dict[str, Any]:
        """Return one pair, randomly cropped and augmented.

        Args:
            index: Index into the sorted keys.
            rng: Source of the random choices, used in BasicSR's order: ``random`` itself or a ``random.Random``.

        Returns:
            ``lq`` (3, gt_size / scale, gt_size / scale) and ``gt`` (3, gt_size, gt_size): uint8, RGB, [0, 255],
            contiguous; ``lq_path`` and ``gt_path``: the key.

        Raises:
            UserError: A record is missing or does not match its shape, or the sizes do not match.
        """
        key, scale, gt_size = self.paths[index]["gt_path"], self.opt["scale"], self.opt["gt_size"]
        size = gt_size // scale
        lq_shape, gt_shape = (shapes[key] for shapes in self._shapes)
        with self._readers[0].record(key) as lq_record, self._readers[1].record(key) as gt_record:
            lq, gt = view_planes(lq_record, lq_shape), view_planes(gt_record, gt_shape)
            # Gray becomes three equal planes, as when OpenCV decodes a PNG.
            lq, gt = (np.broadcast_to(image, (3, *image.shape[1:])) if len(image) == 1 else image for image in (lq, gt))
            channels, height, width = lq.shape
            # A rest of the GT that is of no LQ pixel is never reached.
            if (len(gt), gt.shape[1] // scale, gt.shape[2] // scale) != (3, height, width) or channels != 3:
                shapes = f"GT {gt.shape} and LQ {lq.shape}"
                raise UserError(f"expected one or three planes and GT = {scale} x LQ, got {shapes}")
            if min(height, width) < size:
                raise UserError(f"LQ is {width} x {height}, expected at least {size} (gt_size / scale)")
            # BasicSR's paired_random_crop draws in LQ pixels, the row first.
            top, left = rng.randint(0, height - size), rng.randint(0, width - size)
            lq = lq[:, top : top + size, left : left + size]
            top, left = scale * top, scale * left
            gt = gt[:, top : top + gt_size, left : left + gt_size]
            # Its augment draws in this order, and nothing for a flip that is switched off.
            hflip = self.opt["use_hflip"] and rng.random() < 0.5
            vflip = self.opt["use_rot"] and rng.random() < 0.5
            transpose = self.opt["use_rot"] and rng.random() < 0.5
            flipped = (slice(None), slice(None, None, -1 if vflip else 1), slice(None, None, -1 if hflip else 1))
            lq, gt = lq[flipped], gt[flipped]
            if transpose:
                # What BasicSR calls a rotation by 90 degrees.
                lq, gt = lq.swapaxes(1, 2), gt.swapaxes(1, 2)
            # The only copy: the map is read-only and closes with the block.
            tensors = {"lq": torch.from_numpy(lq.copy()), "gt": torch.from_numpy(gt.copy())}
        return {**tensors, "lq_path": key, "gt_path": key}
