"""Judge validations: whether they still improve (``val: patience``), and whether they beat the start weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from dp_basicsr.data.datasets import fingerprint
from dp_basicsr.errors import UserError
from dp_basicsr.metrics.scores import better_of
from dp_basicsr.options.schema import Val
from dp_basicsr.options.section import Entry

from basicsr.utils import get_root_logger

Figures = dict[str, dict[str, float]]  # set -> metric -> mean

IN_A_ROW = 3  # validations below the start's before a warning (our choice)
COLOR_LEVELS = 2.0  # of 255, by which the mean colour may leave the LQ's beyond the start's (our choice)
# These fall below an L1 start's by design, unless pixels alone are trained.
FIDELITY = ("calculate_psnr", "calculate_ssim")


class Judge:
    """Counts validations without improvement, and compares them with that of the start weights.

    With ``of_pixels``, the training has the pixel loss alone.
    """

    def __init__(self, val: Val, of_pixels: bool) -> None:
        self.val, self.of_pixels = val, of_pixels
        self.best: dict[str, float] = {}  # `set/metric` -> the best mean
        self.waited = 0  # validations in a row without improvement
        self.judged = 0  # the last judged iteration
        self.start: Figures = {}
        self.start_color: dict[str, float] = {}
        self.below = 0  # validations in a row of which every metric is worse than the start's
        self.warned: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return all counts and figures."""
        return {name: value for name, value in vars(self).items() if name not in ("val", "of_pixels")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; raise a UserError on other content."""
        # The attributes are the state, so a state of another version has other names or types.
        kinds = {name: type(value) for name, value in self.state_dict().items()}
        if {name: type(value) for name, value in state.items()} != kinds:
            raise UserError("its judge is not that of this version")
        vars(self).update(state)

    def take_start(self, figures: Figures, colors: Mapping[str, float]) -> None:
        """Keep the figures of the start weights, which count neither for patience nor as best."""
        self.start, self.start_color = figures, dict(colors)

    def forget(self, name: str, metric: str) -> None:
        """Forget the figures of a set's metric, with which no later one can be compared."""
        self.best.pop(f"{name}/{metric}", None)
        self.start.get(name, {}).pop(metric, None)

    def judge(self, iteration: int, figures: Figures, colors: Mapping[str, float]) -> None:
        """Judge a validation of all sets; one that a resumed run repeats does not count twice."""
        if iteration <= self.judged:
            return
        self.judged = iteration
        monitor = [self.val.monitor] if isinstance(self.val.monitor, str) else self.val.monitor
        now, start = flat(figures), flat(self.start)
        # A monitor names a metric of all sets, or one of them as `set/metric`.
        watched = [key for key in now if monitor is None or key in monitor or key.rpartition("/")[2] in monitor]
        # A skipped set has no figures, which is no lack of improvement.
        self.waited += bool(watched)
        for key in watched:
            # An infinite PSNR could never be surpassed: the patience would run out after a perfect set.
            if not math.isfinite(now[key]):
                continue
            if key not in self.best or self._is_better(key, now[key], self.best[key], self.val.min_delta):
                self.best[key], self.waited = now[key], 0
        shared = [key for key in now if key in start]
        telling = any(self.of_pixels or self._options(key)["type"] not in FIDELITY for key in shared)
        worse = all(self._is_better(key, start[key], now[key]) for key in shared)
        self.below = self.below + 1 if telling and worse else 0
        # Equal, not at least: one warning for each time that the run falls below its start.
        if self.below == IN_A_ROW:
            pairs = ", ".join(f"{key} {now[key]:.4g} (start: {start[key]:.4g})" for key in shared)
            get_root_logger().warning(f"For {IN_A_ROW} validations every metric is worse than the start's: {pairs}.")
        for name, shift in colors.items():
            beyond = shift - self.start_color.get(name, math.inf)
            if beyond > COLOR_LEVELS and name not in self.warned:
                self.warned.append(name)
                get_root_logger().warning(
                    f"The mean colour of {name} is {shift:.1f} of 255 levels from its LQ's, {beyond:.1f} more than "
                    "with the start weights: the network changes colours."
                )

    def is_over(self) -> bool:
        """Whether the patience is used up."""
        return self.val.patience is not None and self.waited >= self.val.patience

    def _options(self, key: str) -> Entry:
        return (self.val.metrics or {})[key.rpartition("/")[2]]

    def _is_better(self, key: str, value: float, other: float, by: float = 0.0) -> bool:
        options = self._options(key)
        sign = -1 if (options.get("better") or better_of(options["type"])) == "lower" else 1
        return sign * (value - other) > by


class Measured:
    """What each figure of a run is measured on: those of other images or settings cannot be compared.

    ``metrics`` are the options ``val: metrics``; the sets have BasicSR's ``opt`` and ``paths``.
    """

    def __init__(self, metrics: Mapping[str, Any], datasets: Iterable[Any]) -> None:
        self.now: dict[str, str] = {}
        for dataset in datasets:
            images = fingerprint(dataset, with_sizes=True)
            for metric, options in metrics.items():
                settings = json.dumps(options, sort_keys=True, default=str)
                self.now[f"{dataset.opt['name']}/{metric}"] = f"images {images} {settings}"
        self.before = self.now

    def state_dict(self) -> dict[str, str]:
        """Return a text for each ``set/metric``."""
        return self.now

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Keep a state to compare with."""
        self.before = dict(state)

    def changed(self) -> list[tuple[str, str]]:
        """Return the sets and metrics that were measured on something else in the state."""
        keys = [key for key, text in self.now.items() if self.before.get(key, text) != text]
        return [(name, metric) for name, _, metric in (key.rpartition("/") for key in keys)]


def flat(figures: Figures) -> dict[str, float]:
    """Return the means by ``set/metric``."""
    return {f"{name}/{metric}": value for name, values in figures.items() for metric, value in values.items()}
