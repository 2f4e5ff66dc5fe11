"""Report the progress of a run: log file, TensorBoard, wandb, and a progress bar on a terminal."""

from __future__ import annotations

import glob
import logging
import math
import re
import shutil
import sys
import textwrap
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from logging.handlers import MemoryHandler, WatchedFileHandler
from statistics import median
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.distributed.collectives import agree_on
from dp_basicsr.errors import UserError, first_line, import_optional
from dp_basicsr.evaluation.curves import read_run
from dp_basicsr.options.run import RunOptions
from dp_basicsr.options.schema import Train
from dp_basicsr.utils.atomic_io import await_archive_name

import basicsr
import torch
import torchvision
from basicsr.utils import MessageLogger, get_root_logger, get_time_str, mkdir_and_rename
from basicsr.utils.options import dict2str
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

# Losses shown in the bar; the log line has all of them.
BAR_LOSSES = ("l_pix", "l_g_pix", "l_g_percep", "l_g_gan", "dp_weight")
DIVERGED = 1000  # times the median of a loss (our choice)

_STAMP = "%Y%m%d_%H%M%S"  # of get_time_str

PAPER_BATCH = 16  # pairs per iteration (paper, section 4.1)


class _ForTerminal(logging.Formatter):
    """The time of day before a message, and lines that fit the terminal; a log file has the date and all figures."""

    def format(self, record: logging.LogRecord) -> str:
        text = getattr(record, "short", None) or record.getMessage()
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        first, *others = f"{time.strftime('%H:%M:%S')} {level}{text}".split("\n")
        width = shutil.get_terminal_size().columns
        # Nine spaces: continued lines begin below the message, after `HH:MM:SS `.
        wrap = partial(textwrap.wrap, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
        return "\n".join([*wrap(first, width), *others]).replace("\u00a0", " ")


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Whether a record is short: BasicSR prints each network in hundreds of lines after one with its size."""
    text = record.getMessage()
    is_printout = (record.funcName == "print_network" and "\n" in text) or text.endswith("will not be optimized.")
    return not (is_printout or getattr(record, "for_file", False))


def start_log(run: RunOptions) -> MemoryHandler:
    """Start logging versions and options (rank 0), before there is a folder for the log; return it for ``write_log``.

    Until then, a run that cannot start has written nothing, and the folder of an earlier run of that name is unchanged.
    """
    logger = get_root_logger()
    held = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    # The exact type, because a FileHandler is a StreamHandler too and keeps all lines.
    for handler in (handler for handler in logger.handlers if type(handler) is logging.StreamHandler):
        handler.addFilter(is_for_terminal)
        if sys.stderr.isatty():
            handler.setFormatter(_ForTerminal())
    if run.rank == 0:
        logger.setLevel(logging.INFO)
        logger.addHandler(held)
    versions = f"BasicSR {basicsr.__version__}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    logger.info(f"dp_basicsr {__version__}, {versions}")
    # As long as the option file: on a terminal it would hide everything else.
    logger.info(dict2str(run.as_dict()), extra={"for_file": True})
    return held


class _LogFile(WatchedFileHandler):
    """Continues without the file if it cannot be written; only a failed checkpoint stops a run.

    One that someone moves or deletes is begun anew.
    """

    reported = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # its folder is gone
            self.handleError(record)

    # logging would print a traceback for every line.
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not self.reported:
            text = f"{self.baseFilename} cannot be written ({sys.exc_info()[1]}); further lines appear only here"
            print(text, file=sys.stderr)
        self.reported = True


def write_log(run: RunOptions, kind: str, held: MemoryHandler) -> None:
    """Open the run's log file, and write what has been logged so far; other ranks than 0 write their errors to it."""
    # BasicSR's name, by which its tools and ours find the logs of a run.
    start, stamp = f"{kind}_{run.options.name}_", get_time_str()
    logs = run.folders.root.glob(f"{glob.escape(start)}[0-9]*_*[0-9].log")
    # They are read in the order of their names, also if the clock or the time zone has gone back since.
    if (latest := max((log.stem.removeprefix(start) for log in logs), default="")) >= stamp:
        with suppress(ValueError):  # of a file that someone else named
            stamp = time.strftime(_STAMP, time.localtime(time.mktime(time.strptime(latest, _STAMP)) + 1))
    path = run.folders.root / agree_on(f"{start}{stamp}.log")
    # Opened with the first line, because a host that does not share the folder of rank 0 may have none.
    file = _LogFile(path, encoding="utf-8", errors="backslashreplace", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))  # BasicSR's
    held.setTarget(file)
    held.flush()
    logger = get_root_logger()
    logger.removeHandler(held)
    logger.addHandler(file)


def require_loggers(run: RunOptions) -> None:
    """Refuse TensorBoard and wandb if they are missing, broken or too old (UserError)."""
    if run.options.logs.use_tb_logger:
        import_optional("tensorboard")
        # It refuses a TensorBoard that is too old for torch.
        import_optional("torch.utils.tensorboard")
        if run.options.logs.wandb_project:
            import_optional("wandb")


def _has_figures(run: RunOptions) -> bool:
    # As in BasicSR, whose MessageLogger writes no figures for names with `debug` either.
    return run.rank == 0 and "debug" not in run.options.name and run.options.logs.use_tb_logger


def start_wandb(run: RunOptions) -> None:
    """Start wandb on rank 0 if it is requested: before TensorBoard, whose figures it takes, and before any folder."""
    logs = run.options.logs
    if not _has_figures(run) or logs.wandb is None or not logs.wandb_project:
        return
    wandb = import_optional("wandb")
    # The page's address and the folder of a run end in its id; a folder's name wandb would take for that of a new run.
    resume_id = re.sub(r"^(.*(/runs/|run-\d{8}_\d{6}-)|.*/(?=.))|[/?].*", "", logs.wandb.resume_id or "") or None
    try:
        started = wandb.init(
            project=logs.wandb_project, name=run.options.name, id=resume_id, resume="allow" if resume_id else None,
            config=run.as_dict(), sync_tensorboard=True,
        )  # fmt: skip
    except Exception as error:  # its errors have no public common class
        advice = "run `wandb login`, or set WANDB_MODE=offline"
        raise UserError(f"logger: wandb cannot start ({first_line(error)}): {advice}") from error
    get_root_logger().info(f"wandb: project {logs.wandb_project}, resume_id {started.id}")


@contextmanager
def tensorboard(run: RunOptions, resuming: bool, keep: int = 0) -> Iterator[Any]:
    """Open TensorBoard's writer on rank 0 (otherwise None).

    A new run archives the figures of an earlier run of its name; a resumed one has those up to the iteration ``keep``.
    """
    if not _has_figures(run):
        yield None
        return
    if not resuming:
        await_archive_name(str(run.tensorboard))
        mkdir_and_rename(str(run.tensorboard))
    # TensorBoard hides what an earlier process wrote from purge_step on: a resumed run repeats it.
    writer = import_optional("torch.utils.tensorboard").SummaryWriter
    writer = writer(log_dir=str(run.tensorboard), purge_step=keep + 1 if resuming else None)
    add_scalar, curves = writer.add_scalar, {}
    with suppress(UserError):  # of logs that someone deleted
        curves = read_run(run.folders.root) if keep else {}

    def add(tag: str, scalar_value: Any, global_step: int | None = None, *more: Any, **settings: Any) -> None:
        # The validation of the checkpoint is repeated.
        logged = curves.get(tag.removeprefix("metrics/")) if global_step == keep else None
        if logged and (keep, round(float(scalar_value), 4)) in logged:
            return
        # TensorBoard opens its file for each figure, and a folder that someone clears must not end the run.
        if not run.tensorboard.is_dir():
            get_root_logger().warning(f"{run.tensorboard} is gone, with the figures up to now; it begins anew")
            run.tensorboard.mkdir(parents=True, exist_ok=True)
        add_scalar(tag, scalar_value, global_step, *more, **settings)
        # Beside the log's line, by which a resumed run knows that it is there.
        if tag.startswith("metrics/"):
            writer.flush()

    writer.add_scalar = add
    try:
        yield writer
    finally:
        # A full disk has been reported already.
        with suppress(OSError):
            writer.close()


@contextmanager
def progress_bar(run: RunOptions, start_iter: int) -> Iterator[tqdm]:
    """Create a bar with iteration and ETA, on rank 0 of a terminal only; log lines go above it."""
    total, name = run.options.training.total_iter, run.options.name
    hidden = run.rank != 0 or not sys.stderr.isatty()
    with tqdm(total=total, initial=start_iter, desc=name, unit="it", disable=hidden, dynamic_ncols=True) as bar:
        if hidden:
            yield bar
            return
        # Otherwise each log line would be written into the bar.
        with logging_redirect_tqdm([get_root_logger()]):
            yield bar


class IterationLog:
    """BasicSR's line of an iteration for the log file and TensorBoard, and one with sensible digits for a terminal.

    The bar shows the main losses and the share of time spent waiting for data.
    """

    def __init__(self, run: RunOptions, start_iter: int, tb_logger: Any, bar: tqdm) -> None:
        self.run, self.bar = run, bar
        self.start_iter, self.start_time = start_iter, time.monotonic()
        # BasicSR counts from the first iteration of a start, we from the last one before it.
        self.line = MessageLogger(run.as_dict(), start_iter + 1, tb_logger)
        # BasicSR's ETA is off by one and would end below zero.
        self.line.max_iters = run.options.training.total_iter + 1
        self.past: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=1000))

    def __call__(self, epoch: int, iteration: int, rates: list[float], figures: dict[str, float]) -> None:
        """Log one iteration; ``figures`` are BasicSR's ``time`` and ``data_time``, others, and the losses."""
        if self.run.rank != 0:
            return
        shown = {name: f"{figures[name]:.3g}" for name in BAR_LOSSES if name in figures}
        for loss in ("l_pix", "l_percep", "l_g_pix", "l_g_percep"):  # those that no GAN raises
            # None in a step of D alone; the step names what is not finite.
            past, value = self.past[loss], figures.get(loss, 0.0)
            if not 0 < value < math.inf:
                continue
            # When it gets there, not at each line from then on.
            if past and value > (limit := DIVERGED * median(past)) >= past[-1]:
                get_root_logger().warning(
                    f"{loss} is {DIVERGED * value / limit:.3g} times its median so far: the training diverges; "
                    "resume from an earlier checkpoint, with a lower learning rate or loss weight"
                )
            past.append(value)
        # Not drawn here: the next update draws the bar anyway.
        self.bar.set_postfix({"data": f"{figures['data_time'] / figures['time']:.0%}", **shown}, refresh=False)
        name, total = self.run.options.name, self.run.options.training.total_iter
        left = (time.monotonic() - self.start_time) / (iteration - self.start_iter) * (total - iteration)
        words = [f"{name}: {iteration:,}/{total:,}", f"ETA {timedelta(seconds=round(left))}",
                 f"{figures['time']:.3g} s/it", f"lr {' '.join(f'{rate:.2g}' for rate in rates)}"]  # fmt: skip
        words += [f"{name} {value:.3g}" for name, value in figures.items() if name.startswith(("l_", "dp_", "out_"))]
        # No-break spaces keep each figure beside its name.
        short = " | ".join(word.replace(" ", "\u00a0") for word in words)
        # One record with both forms: the log file formats the long one, the terminal `short`.
        self.line.logger = logging.LoggerAdapter(get_root_logger(), {"short": short})
        # A new mapping, because MessageLogger removes keys from the one that it gets.
        self.line({"epoch": epoch, "iter": iteration, "lrs": rates} | figures)


def current_losses(model: Any) -> dict[str, float]:
    """Return the last step's losses, a DPLoss's terms too if another package's model does not log them. Collective."""
    losses: dict[str, float] = model.get_current_log()
    perceptual: Any = next((part for part in vars(model).values() if hasattr(part, "log_terms")), None)
    terms = perceptual.log_terms() if perceptual is not None else {}
    # Averaged over the processes, as the model's own losses are.
    return losses if terms.keys() <= losses.keys() else losses | model.reduce_loss_dict(terms)


def describe_batch(train: Train, processes: int, batch_size: int, model: Any) -> str:
    """Describe the mini-batch of all processes relative to the paper's, and its relation to the learning rate."""
    threads = f"{torch.get_num_threads()} CPU thread(s) each"
    parts = f" in {train.grad_accumulation} parts" if train.grad_accumulation > 1 else ""
    share = "the paper's" if batch_size == PAPER_BATCH else f"{batch_size / PAPER_BATCH:g} times the paper's"
    # Of the optimizers, not the options, which may leave the rate to an optimizer's default.
    groups = {key: vars(model)[f"optimizer_{key}"].param_groups[0] for key in "gd" if f"optimizer_{key}" in vars(model)}
    rates = [f"{key.upper()} {group.get('initial_lr', group['lr']):g}" for key, group in groups.items()]
    return (
        f"Mini-batch: {processes} process(es), {threads}, x {batch_size // processes} pairs{parts} = {batch_size} "
        f"pairs, {share} {PAPER_BATCH}; {train.total_iter} iterations see {train.total_iter * batch_size:,} pairs. "
        f"The learning rate is used as given ({', '.join(rates)}), not scaled with the mini-batch."
    )
