"""Test a model: upscale the available test sets, log the metrics, write the tables."""

from __future__ import annotations

from dp_basicsr.checkpoint.resume import require_networks
from dp_basicsr.data.datasets import evaluation_loaders, how_to_get_test_sets
from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.after_test import evaluate_test_run, metrics_of
from dp_basicsr.metrics import drop_unavailable, refuse_small_images
from dp_basicsr.models.validation import validate
from dp_basicsr.options.run import RunOptions
from dp_basicsr.runs.limits import build_run_model, shorten_socket_names
from dp_basicsr.runs.log import start_log, write_log

import torch
from basicsr.utils import get_root_logger, make_exp_dirs


def test(run: RunOptions) -> None:
    """Upscale every image of the test sets that exist, write the results and their tables, log the metrics."""
    opt = run.as_dict()
    torch.backends.cudnn.benchmark = True
    shorten_socket_names()
    require_networks(opt)
    held_log = start_log(run)
    logger = get_root_logger()
    # Before unavailable ones are dropped: the tables keep their columns and give the reason.
    metrics = metrics_of(opt)
    drop_unavailable(opt)
    loaders = evaluation_loaders(opt, "test")
    if not loaders:
        raise UserError(f"none of the test sets has an image; {how_to_get_test_sets()}")
    refuse_small_images(opt, loaders)
    model = build_run_model(opt)
    make_exp_dirs(opt)
    # Wait until rank 0 has moved an earlier run's folder aside.
    agree_on(None)
    write_log(run, "test", held_log)
    for note in run.notes:
        logger.warning(note)
    for loader in loaders:
        logger.info(f"Testing {loader.dataset.opt['name']} ...")  # type: ignore[attr-defined]
        # BasicSR puts the run's name where a validation has the iteration.
        validate(model, loader, opt["name"], None, opt["val"]["save_img"])
    if opt["rank"] == 0:
        evaluate_test_run(opt, metrics, loaders)
