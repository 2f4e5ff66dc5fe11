"""Training curves out of a run's log file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

# A log line of BasicSR's MessageLogger: "[..][epoch:  0, iter:     100, lr:(1.000e-04,)] [eta: ...] l_g_pix: 1e-3 ..."
_ITERATION = re.compile(r"\[epoch:\s*\d+, iter:\s*([\d,]+), lr:\(([^,)]+)")
_VALUE = re.compile(r"(\w+): ([-+.\deE]+|nan|inf)(?= |$)")

Curve = list[tuple[int, float]]


def read_log(path: Path) -> dict[str, Curve]:
    """Read (iteration, value) pairs of everything that a training log prints, by name; ``lr`` is the learning rate."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        found = _ITERATION.search(line)
        if found:
            iteration = int(found[1].replace(",", ""))
            curves["lr"].append((iteration, float(found[2])))
            for name, value in _VALUE.findall(line.rpartition("] ")[2]):
                curves[name].append((iteration, float(value)))
    return dict(curves)


def plot_panels(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw curves, ``{title of a panel: {label: curve}}``, side by side into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for label, curve in curves.items():
            axis.plot(*zip(*curve, strict=True), label=label)
        axis.set_title(title)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def product(one: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> Curve:
    """Multiply two curves point by point, such as w and L_Res."""
    return [(iteration, a * b) for (iteration, a), (_, b) in zip(one, other, strict=True)]
