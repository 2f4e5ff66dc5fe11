"""Training curves from a run's log files: losses, w, learning rate, validation metrics."""

from __future__ import annotations

import io
import math
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.figures import save_figure

Curve = list[tuple[int, float]]
Panels = dict[str, dict[str, Curve]]  # panel title -> label -> curve

# A log line of BasicSR's MessageLogger: "[..][epoch:  0, iter:     100, lr:(1.000e-04,)] [eta: ...] l_g_pix: 1e-3 ..."
_ITERATION = re.compile(r"\[epoch:\s*\d+, iter:\s*([\d,]+), lr:\(([^,)]+)")
_START = re.compile(r"(?:Start training from epoch: \d+|Validating), iter: (\d+)")
_VALUE = re.compile(r"(\S+): ([-+.\deE]+|nan|inf)(?= |$)")

# A validation logs "Validation Set5", then "# psnr_rgb: 26.69  Best: 26.70 @ 5000 iter" for each metric.
_VALIDATION = re.compile(r"Validation (.+)$")
_METRIC = re.compile(r"# (.+): ([-+.\deE]+|inf)(?:\s+Best: \S+ @ (\d+) iter)?\s*$")

# Names drawn in one panel, if they are in the log.
_LOSS_PANELS = {
    "Generator": ("l_pix", "l_g_pix", "l_g_percep", "l_g_gan"),
    "L_VGG against w * L_Res": ("l_g_vgg", "dp_weight * l_g_resnet"),
    "Dynamic weight w": ("dp_weight",),
    "Discriminator": ("l_d_real", "l_d_fake"),
    "Discriminator's output": ("out_d_real", "out_d_fake"),
    "Learning rate": ("lr",),
}
_SHARE_PANELS = {  # prefixes of the names
    "Share of the gradient at the image": ("dp_share_",),
    "Balance: weight and share of each loss": ("weight_", "share_"),
}


def training_logs(folder: Path) -> list[Path]:
    """Return a run's logs in the order of their starts, which end their names: a copy of the folder has other times."""
    return sorted(folder.glob("train_*.log"), key=lambda log: log.stem[-len("20261231_235959") :])


def read_run(folder: Path) -> dict[str, Curve]:
    """Read the (iteration, value) pairs of everything in a run's logs, ``train_*.log``, by name.

    ``lr`` is the learning rate; validation metrics are named ``<set>/<metric>``. What a run did after the iteration
    that a later log resumes is left out. No log, or empty ones, are a UserError.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for path in training_logs(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
        # A run that went back to an earlier state abandoned what came after it, also where nothing replaces it.
        start, first = _START.search(text), _ITERATION.search(text)
        resumed = int(start[1]) if start else int(first[1].replace(",", "")) - 1 if first else sys.maxsize
        for name, curve in curves.items():
            curves[name] = {iteration: value for iteration, value in curve.items() if iteration <= resumed}
        iteration, set_name = 0, ""
        # The later log wins: a resumed run repeats the validation of its checkpoint.
        for line in text.splitlines():
            if match := _ITERATION.search(line):
                iteration = int(match[1].replace(",", ""))
                curves["lr"][iteration] = float(match[2])
                # Only after the last bracket: the times before it look like losses.
                for name, value in _VALUE.findall(line.rpartition("] ")[2]):
                    curves[name][iteration] = float(value)
            elif match := _START.search(line):
                iteration = int(match[1])  # a resumed run validates before its first one
            elif match := _VALIDATION.search(line):
                set_name = match[1].strip()
            elif match := _METRIC.search(line):
                # BasicSR's own log does not tell a validation's iteration: with a print_freq above val_freq the line
                # before is older, but a new best value names its own.
                curves[f"{set_name}/{match[1]}"][max(iteration, int(match[3] or 0))] = float(match[2])
    if not curves:
        raise UserError(f"{folder}: expected a train_*.log with at least one line of losses")
    return {name: sorted(curve.items()) for name, curve in curves.items() if curve}


def training_panels(curves: Mapping[str, Curve]) -> Panels:
    """Group a run's curves into panels: losses by kind, w, the learning rate, and each validation metric."""
    known = dict(curves)
    if {"dp_weight", "l_g_resnet"} <= known.keys():
        w = dict(known["dp_weight"])
        known["dp_weight * l_g_resnet"] = [(at, w[at] * value) for at, value in known["l_g_resnet"] if at in w]
    panels: Panels = {
        title: {name: known[name] for name in names if name in known} for title, names in _LOSS_PANELS.items()
    }
    for title, prefixes in _SHARE_PANELS.items():
        panels[title] = {name: curve for name, curve in known.items() if name.startswith(prefixes)}
    for name, curve in curves.items():
        if "/" in name:
            set_name, metric = name.rsplit("/", 1)
            panels.setdefault(f"Validation: {metric}", {})[set_name] = curve
    return {title: lines for title, lines in panels.items() if lines}


def plot_panels(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw panels side by side, at most four in a row, into the file ``path`` (.png, .svg, .pdf)."""
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    for number, (title, curves) in enumerate(panels.items(), start=1):
        _draw(figure.add_subplot(rows, columns, number), title, curves)
    save_figure(figure, path, dpi=130)


def panel_svg(title: str, curves: Mapping[str, Curve]) -> str:
    """Draw one panel as inline SVG: text stays text, and everything but the lines uses the page's colour."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = "#010203"  # placeholder for "currentColor", which matplotlib cannot write
    # The salt makes the SVG's ids the same for the same curves, and different between panels.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title}
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
        settings[part] = ink
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        _draw(figure.subplots(), title, curves)
        text = io.StringIO()
        with warnings.catch_warnings():
            # The browser has fonts of its own.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            # Without the date, so that the same curves give the same file.
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    # The XML declaration and doctype before it are not allowed within HTML.
    return svg[svg.index("<svg") :].replace(ink, "currentColor")


def _draw(axis: Any, title: str, curves: Mapping[str, Curve]) -> None:
    values = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    for number, (label, curve) in enumerate(curves.items()):
        if gaps := sum(not math.isfinite(value) for _, value in curve):
            label += f" ({gaps} of {len(curve)} not finite)"
        # A line of a single point would not be visible.
        marker = "o" if len(curve) < 20 else ""
        # After ten lines the colours come again.
        line = ("-", "--", ":", "-.")[number // 10 % 4]
        axis.plot(*zip(*curve, strict=True), line, label=label, linewidth=1.4, marker=marker, markersize=3)
    if values and max(values) > 30 * min(values) > 0:
        # Otherwise small values would vanish on the axis.
        axis.set_yscale("log")
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_xlabel("iteration", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, framealpha=0, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # below the plot
