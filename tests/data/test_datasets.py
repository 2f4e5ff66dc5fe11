"""Data sets of the options: what their lists of files and their files may be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError

import pytest

from tests.support.fuzz import draws
from tests.support.stream import options

KERNELS: dict[str, Any] = {
    "blur_kernel_size": 21, "kernel_list": ["iso"], "kernel_prob": [1], "sinc_prob": 0.1,
    "blur_sigma": [0.2, 3], "betag_range": [0.5, 4], "betap_range": [1, 2],
}  # fmt: skip
LISTS: dict[str, dict[str, Any]] = {
    "PairedImageDataset": {"meta_info_file": "list.txt"},
    "RealESRGANDataset": {"meta_info": "list.txt", "final_sinc_prob": 0.8, **KERNELS}
    | {f"{key}2": value for key, value in KERNELS.items()},
    "RealESRGANPairedDataset": {"meta_info": "list.txt"},
}


def test_a_missing_file_is_named_or_skipped_whichever_dataset_lists_it(
    pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, or when it is drawn; BasicSR's RealESRGANDataset would draw another one without a word."""
    logging.getLogger("basicsr").addHandler(caplog.handler)
    for rng in draws(9):
        kind, on_bad_image = rng.choice(list(LISTS)), rng.choice(("stop", "skip"))
        lines = [f"image{number}.png" for number in range(4)]
        if kind == "RealESRGANPairedDataset":
            lines = [f"GT/{name}, LRbicx4/{name}" for name in lines]
        Path("list.txt").write_text("\n".join([*lines, ""]))
        train = {"type": kind, **LISTS[kind], "on_bad_image": on_bad_image, "max_bad_share": 1}
        if kind == "RealESRGANPairedDataset":
            train |= {"dataroot_gt": str(pairs), "dataroot_lq": str(pairs)}
        path = pairs / "GT" / f"image{rng.randrange(4)}.png"
        content, is_late = path.read_bytes(), rng.random() < 0.5
        caplog.clear()
        try:
            stream = TrainStream(options(pairs, train=train)) if is_late else None
            path.unlink()
            if on_bad_image == "stop":
                with pytest.raises(UserError, match=path.name):
                    list(zip(range(4), (stream or TrainStream(options(pairs, train=train))).batches(0), strict=False))
                continue
            stream = stream or TrainStream(options(pairs, train=train))
            batches = [batch for _, batch in zip(range(4), stream.batches(0), strict=False)]  # an epoch
            assert all(str(path) not in batch["gt_path"] for batch in batches)
            assert f"sample {path}" in caplog.text or f"or {path}" in caplog.text, (kind, caplog.text)
        finally:
            path.write_bytes(content)
