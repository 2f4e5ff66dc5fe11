"""A small model that validates on five images of different sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dp_basicsr.models  # noqa: F401

from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from torch.utils.data import DataLoader

from tests.support.images import write_pairs
from tests.support.networks import make_network
from tests.support.options import model_options

METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 4},
    "ssim_y": {"type": "calculate_ssim", "crop_border": 4, "test_y_channel": True},
}


SIZES = [(36, 40), (20, 52), (64, 24), (30, 30), (41, 27)]  # LR, of every shape


def make_loader(folder: Path) -> DataLoader:
    write_pairs(folder / "set", *[(4 * height, 4 * width) for height, width in SIZES], names=("gt", "lq"))
    options = {
        "name": "five", "type": "PairedImageDataset", "phase": "val", "scale": 4, "io_backend": {"type": "disk"},
        "dataroot_gt": str(folder / "set/gt"), "dataroot_lq": str(folder / "set/lq"),
    }  # fmt: skip
    return build_dataloader(build_dataset(options), options)


def make_model(folder: Path, val: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A small model whose network has an output that looks like an image."""
    train, arch = changes.pop("train", {}), changes.pop("arch", "RRDBNetDP")
    opt = model_options("ESRGANDPModel", folder, **train) | changes
    size = {"num_in_ch": 3, "num_out_ch": 3, "num_block": 2, "num_grow_ch": 32}
    opt["network_g"] |= {"type": arch, "scale": opt["scale"], **size}
    opt["path"]["visualization"] = str(folder / "visualization")
    opt["val"] = {"save_img": False, "metrics": METRICS, "suffix": None} | (val or {})
    model = build_model(opt)
    state = make_network(arch, opt["scale"]).state_dict()
    for net in (model.net_g, getattr(model, "net_g_ema", None)):
        if net is not None:
            model.get_bare_model(net).load_state_dict(state)
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
