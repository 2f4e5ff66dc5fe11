"""Models of other packages in our loop: they train on a CPU, and their log has the terms of a DPLoss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dp_basicsr import test, train
from dp_basicsr.runs.log import current_losses

import pytest
import yaml
from basicsr.models import build_model
from basicsr.utils.registry import METRIC_REGISTRY
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.support.models import step
from tests.support.networks import network_file
from tests.support.options import REAL_ESRGAN_KERNELS, SMALL, model_options, twice, write_small
from tests.support.programs import code_of, logs_of

TERMS = ("l_g_vgg: ", "l_g_resnet: ", "dp_weight: ")
DEGRADATION = {
    "resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.15, 1.5], "gaussian_noise_prob": 0.5, "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3], "gray_noise_prob": 0.4, "jpeg_range": [30, 95],
}  # fmt: skip


def on_the_fly(model_type: str, **top: Any) -> Path:
    """A small option file like those of Real-ESRGAN, with DPLoss as its perceptual loss."""
    opt: dict[str, Any] = model_options(model_type, Path("unused"), ema_decay=0.9, total_iter=2)
    for key in ("dist", "rank", "world_size", "is_train", "path"):
        del opt[key]
    names = [f"GT/image{number}.png" for number in range(4)]
    Path("meta.txt").write_text("\n".join(names))
    data = {
        "name": "on_the_fly", "type": "RealESRGANDataset", "dataroot_gt": "pairs", "meta_info": "meta.txt",
        "io_backend": {"type": "disk"}, **REAL_ESRGAN_KERNELS, "gt_size": 64, "use_hflip": True,
        "use_rot": False, "use_shuffle": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2,
    }  # fmt: skip
    roots = {"dataroot_gt": "pairs/GT", "dataroot_lq": "pairs/LRbicx4", "io_backend": {"type": "disk"}}
    opt |= twice(DEGRADATION) | {"second_blur_prob": 0.8, "gt_size": 64, "queue_size": 2, **top}
    opt |= {
        "datasets": {"train": data, "val": {"name": "paired", "type": "PairedImageDataset", **roots}},
        "network_g": {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1},
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4, "skip_connection": True},
        "val": {"val_freq": 2, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    Path("small.yml").write_text(yaml.safe_dump(opt))
    return Path("small.yml")


GAN = {"l1_gt_usm": True, "percep_gt_usm": True, "gan_gt_usm": False}


@pytest.mark.parametrize(("model_type", "top"), [("RealESRGANModel", GAN), ("RealESRNetModel", {"gt_usm": True})])
def test_real_esrgan_trains_on_a_cpu_with_dp_loss(model_type: str, top: dict[str, Any], pairs: Path) -> None:
    """Two steps with degradation on the fly; the second uses pairs from the model's queue."""
    train.main(["-opt", str(on_the_fly(model_type, **top))])
    log = logs_of()
    steps = [line for line in log.splitlines() if "iter:" in line and "lr:(" in line]
    assert len(steps) == 2
    assert all(line.count(term) == 1 for term in TERMS for line in steps)
    assert re.search(r"Validation paired\s+# psnr: \d+\.\d+", log)
    assert Path("experiments/small/models/net_g_latest.pth").is_file()


def test_check_takes_a_batch_without_lq(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real-ESRGAN#600: somebody else's option file, with one's own folder."""
    entry = "datasets:train:meta_info="
    options = ["-opt", str(on_the_fly("RealESRGANModel", **GAN)), "--check", "--force_yml"]
    assert code_of(train.main, [*options, "datasets:train:dataroot_gt=pairs/GT", f"{entry}~"]) == 0
    said = capsys.readouterr().out
    assert "one step of RealESRGANModel on 2 pairs of the set's 4 (gt 2 x 3 x 400 x 400)" in said
    assert "dp_weight" in said
    assert code_of(train.main, [*options, "datasets:train:dataroot_gt=nowhere", f"{entry}nowhere.txt"]) == 2
    error = capsys.readouterr().err
    assert "dataroot_gt: expected a folder, got 'nowhere'" in error
    assert "meta_info: expected a file, got 'nowhere.txt'" in error
    assert "div2k" not in error
    assert not Path("experiments").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("datasets:train:dataroot_gt=nowhere", "dataroot_gt: expected a folder, got 'nowhere'"),
        ("datasets:train:meta_info=nowhere.txt", "meta_info: expected a file, got 'nowhere.txt': no such file"),
        # Real-ESRGAN#588: a list of the validation set was an Errno.
        (
            "datasets:val={name: v, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4, "
            "io_backend: {type: disk}, meta_info_file: nowhere.txt}",
            "datasets:val:meta_info_file: expected a file, got 'nowhere.txt': no such file",
        ),
    ],
)
def test_check_without_the_data_of_a_foreign_dataset_tries_no_step(
    entry: str, message: str, pairs: Path, refused: Any
) -> None:
    """Random batches cannot be made, because they contain kernels and more."""
    said = refused(train.main, ["-opt", str(on_the_fly("RealESRGANModel", **GAN)), "--check", "--force_yml", entry])
    assert message in said
    assert "Error" not in said


def test_a_key_that_a_foreign_dataset_needs_is_named(pairs: Path, refused: Any) -> None:
    opt = yaml.safe_load(on_the_fly("RealESRGANModel", **GAN).read_text())
    del opt["datasets"]["train"]["kernel_prob2"]
    Path("small.yml").write_text(yaml.safe_dump(opt))
    message = "datasets: on_the_fly: RealESRGANDataset needs the key 'kernel_prob2'"
    assert message in refused(train.main, ["-opt", "small.yml"])


def test_a_stock_model_tests_sets_with_and_without_originals(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CycleGAN-and-pix2pix#1417. BasicSR measures all sets by the metrics of the first one."""
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "mean_of_result", lambda img, **_: float(img.mean()))
    sets = yaml.safe_load(SMALL)["datasets"]
    bare = {key: value for key, value in sets["val_1"].items() if key != "dataroot_gt"}
    sets = {"test_1": sets["val_1"], "test_2": bare | {"name": "bare", "type": "SingleImageDataset"}}
    metrics = {"mean": {"type": "mean_of_result"}, "psnr": {"type": "calculate_psnr", "crop_border": 4}}
    weights = network_file(num_grow_ch=4, num_block=1)
    write_small("model_type=SRModel", f"path:pretrain_network_g={weights}")
    opt = yaml.safe_load(Path("small.yml").read_text()) | {"datasets": sets}
    Path("small.yml").write_text(yaml.safe_dump(opt | {"val": {"save_img": True, "metrics": metrics}}))
    test.main(["-opt", "small.yml"])
    (log,) = Path("results/small").glob("*.log")
    of_pairs, of_bare = log.read_text().split("Validation ")[1:]
    assert "# psnr: " in of_pairs
    assert "# mean: " in of_bare
    assert "# psnr: " not in of_bare
    assert len(list(Path("results/small/visualization/bare").iterdir())) == len(list(Path("pairs/LRbicx4").iterdir()))


def test_a_stock_model_trains_in_a_group_of_cpu_processes(pairs: Path, tmp_path: Path) -> None:
    """BasicSR wraps networks for the current CUDA device, whatever the device is. The group is of one here."""
    opt = model_options("SRModel", tmp_path) | {"dist": True}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = build_model(opt)
        assert isinstance(model.net_g, DistributedDataParallel)
        step(model, 1)
        assert {"l_g_vgg", "l_g_resnet", "dp_weight", "l_pix"} <= current_losses(model).keys()
    finally:
        distributed.destroy_process_group()
