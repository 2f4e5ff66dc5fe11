"""Evaluate the images that test.py has just saved, as scripts/evaluate.py would."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import paths_of
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import markdown, write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, TestSet
from dp_basicsr.images.files import BadImageError
from dp_basicsr.metrics.scores import function_of
from dp_basicsr.options.metrics import METRICS
from dp_basicsr.utils.arguments import advise

from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader

FOLDER = "evaluation"  # in results/<name>/


def metrics_of(opt: dict[str, Any]) -> tuple[str, ...]:
    """Return the metrics to compute: always PSNR and SSIM on RGB and Y; the others if ``val: metrics:`` lists them."""
    wanted = {name for name, metric in METRICS.items() if metric.default and not metric.module}
    for entry in ((opt.get("val") or {}).get("metrics") or {}).values():
        parameters = inspect.signature(function_of(entry["type"])).parameters.values()
        # With the function's defaults: an entry without test_y_channel is PSNR on RGB.
        used = {parameter.name: parameter.default for parameter in parameters} | entry
        for name, metric in METRICS.items():
            if metric.type == entry["type"] and metric.keywords.items() <= used.items():
                wanted.add(name)
    return tuple(name for name in METRICS if name in wanted)


def evaluate_test_run(opt: dict[str, Any], metrics: tuple[str, ...], loaders: Sequence[DataLoader]) -> Path | None:
    """Measure the saved images of every tested set, and bicubic for comparison, and return the folder of the tables.

    It is None (with a log message) if there is nothing to measure.
    """
    logger = get_root_logger()
    sets = []
    for dataset in (loader.dataset for loader in loaders):
        # LMDBs have no files to measure, and some sets no originals.
        paths = [pair for pair in paths_of(dataset) if isinstance(pair, dict)]
        pairs = [pair for pair in paths if Path(pair["gt_path"]).is_file()]
        # By the LQ's name, after which BasicSR names its results.
        gt, lr = ({Path(pair["lq_path"]).stem: Path(pair[key]) for pair in pairs} for key in ("gt_path", "lq_path"))
        # Luma alone cannot be compared with colours; its metrics are those of the test itself.
        if gt and dataset.opt.get("color") != "y":  # type: ignore[attr-defined]
            sets.append(TestSet(dataset.opt["name"], gt, lr))  # type: ignore[attr-defined]
    if not (sets and opt["val"]["save_img"]):
        logger.info(
            "No tables written: they need `val: save_img: true`, originals in image folders, and no `color: y`."
        )
        return None
    suffix = opt["val"].get("suffix") or opt["name"]
    # The exact name that the validation gave its files, because a suffix may contain dots and brackets.
    pattern = f"(.+)_{re.escape(suffix)}"
    ours = Method(opt["name"], Path(opt["path"]["visualization"]) / "{set}", pattern)
    try:
        # Its own files are what was computed, also gray ones of a network that has collapsed.
        evaluation = replace(evaluate(sets, [Method(BICUBIC, None), ours], opt["scale"], metrics), lossy={})
    except UserError as error:
        # Of originals and LQ, not of results, whose folder it does not know.
        is_of_data = isinstance(error.__cause__, BadImageError) and opt["path"]["visualization"] not in str(error)
        way = f"; `{advise('data check', '-opt FILE')}` names all such images" if is_of_data else ""
        raise UserError(f"the results are saved, and not measured: {error}{way}") from error
    folder = write_evaluation(evaluation, Path(opt["path"]["results_root"]) / FOLDER)
    logger.info(f"{folder}:\n{markdown(evaluation)}")
    return folder
