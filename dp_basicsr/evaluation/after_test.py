"""The tables of a test run: what scripts/evaluate.py would write about the images that test.py has just saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dp_basicsr.data.stream import missing_folders
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import markdown, write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.metrics import METRICS

from basicsr.utils import get_root_logger

FOLDER = "evaluation"  # in results/<name>/


def metrics_of(opt: dict[str, Any]) -> tuple[str, ...]:
    """PSNR and SSIM on RGB and Y always; LPIPS, whose backbones may be downloads, as ``val: metrics:`` names it."""
    asked = ((opt.get("val") or {}).get("metrics") or {}).values()
    backbones = {entry.get("net", "alex") for entry in asked if entry["type"] == "calculate_lpips"}
    return tuple(name for name in METRICS if not name.startswith("lpips_") or name.split("_")[1] in backbones)


def evaluate_test_run(opt: dict[str, Any], metrics: tuple[str, ...]) -> Path | None:
    """Measure the saved images of every set that is there, and bicubic beside them.

    Args:
        opt: test.py's options after the test.
        metrics: From ``metrics_of``.

    Returns:
        The folder ``results/<name>/evaluation``, or None where there is nothing to measure, as the log then says.

    Raises:
        UserError: As ``evaluate``.
    """
    logger = get_root_logger()
    sets = [dataset for dataset in opt["datasets"].values() if dataset["phase"] == "test"]
    sets = [one for one in sets if one.get("dataroot_gt") and not missing_folders(one) and not _is_lmdb(one)]
    if not (sets and opt["val"]["save_img"]):
        logger.info("No tables: they need `val: save_img: true` and originals in folders of images.")
        return None
    found = [find_test_set(Path(one["dataroot_gt"]), Path(one["dataroot_lq"]), one["name"]) for one in sets]
    ours = Method(opt["val"].get("suffix") or opt["name"], Path(opt["path"]["visualization"]) / "{set}")
    evaluation = evaluate(found, [Method(BICUBIC, None), ours], opt["scale"], metrics)
    folder = write_evaluation(evaluation, Path(opt["path"]["results_root"]) / FOLDER)
    logger.info(f"{folder}:\n{markdown(evaluation)}")
    return folder


def _is_lmdb(dataset: dict[str, Any]) -> bool:
    return dataset["dataroot_gt"].endswith(".lmdb")
