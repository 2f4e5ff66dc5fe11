"""Compare the judged objectives of a study at the same distortion, with intervals: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

from dp_basicsr.evaluation.figures import save_figure
from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.studies.judging import ALPHAS, COLUMNS, DISTORTION, JUDGE, RECORDS, SECONDARY, read_judged
from dp_basicsr.studies.runner import study_runs
from dp_basicsr.studies.study import Study

import numpy as np
from numpy.typing import NDArray

DROP = 0.25  # dB below the start at which objectives are compared, or what all their runs have lost if that is less
DRAWS = 10_000  # of the bootstrap

Array = NDArray[np.float64]
Scored = Mapping[str, Array]  # of one run on one set: metric -> (images, ALPHAS), NaN for an image without a value
Runs = Mapping[str, Mapping[int, Mapping[str, Scored]]]  # label -> seed -> set


def judged_runs(study: Study) -> tuple[Runs, list[str], list[str]]:
    """Return what was judged so far, on which of the study's sets, and the names of the runs that were not."""
    runs: dict[str, dict[int, dict[str, Scored]]] = {}
    missing = []
    for run in study_runs(study):
        judged = read_judged(run)
        if not judged:
            missing.append(run.name)
        for name, images in judged.items():
            # As float64, None becomes NaN.
            scored = {
                metric: np.array([[scores[metric] for scores in blends] for blends in images.values()], np.float64)
                for metric in COLUMNS
            }
            runs.setdefault(run.label, {}).setdefault(run.seed or 0, {})[name] = scored
    # Those that are on this machine.
    judged_sets = {name for seeds in runs.values() for sets in seeds.values() for name in sets}
    return runs, [name for name in study.sets if name in judged_sets], missing


def psnr_loss(scored: Scored) -> Array:
    """Return by how much the mean PSNR is below the start's, in dB: (ALPHAS,)."""
    means = scored[DISTORTION].mean(axis=0)
    return np.asarray(means[0] - means)


def at_drop(scored: Scored, drop: float, metric: str = JUDGE) -> Array:
    """Return a metric of each image where the set's mean PSNR is ``drop`` dB below the start's.

    Between two of ALPHAS, PSNR and metric are interpolated linearly. Of several crossings the last one counts, because
    a blend may first gain PSNR. The run alone must have lost as much.
    """
    lost, values = psnr_loss(scored), scored[metric]
    # lost[last + 1] is at least `drop`, because the last one is: the division is safe.
    last = max(index for index in range(len(ALPHAS) - 1) if lost[index] < drop)
    part = (drop - lost[last]) / (lost[last + 1] - lost[last])
    return np.asarray((1 - part) * values[:, last] + part * values[:, last + 1])


def bootstrap(differences: Array, draws: int = DRAWS) -> tuple[float, float, float]:
    """Return the mean of paired differences, (seeds, images), and its 95 % interval over images and seeds.

    Each draw takes as many seeds and as many images, both with replacement.
    """
    rng = np.random.default_rng(0)
    # How often each is drawn. Apart, because a seed's effect on all images is not averaged away by many images.
    seeds, images = (rng.multinomial(size, [1 / size] * size, draws) for size in differences.shape)
    means = np.einsum("ds,si,di->d", seeds, differences, images) / differences.size
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def comparison_lines(study: Study, runs: Runs, name: str) -> list[str]:
    """Compare objectives in pairs on one set by the judge, and those named beforehand by the secondary metrics too."""
    named = [tuple(pair) for pair in study.comparisons if set(pair) <= runs.keys()]
    labels = list(dict.fromkeys(label for pair in named for label in pair))
    # Eq. 9 is named first in the study's comparisons. Explored: it with all others, and those that it is named with.
    explored = [(labels[0], label) for label in runs if label != labels[0]] if labels else []
    explored += list(combinations(labels[1:], 2))
    primary, secondary = [], []
    for pair in [*named, *(pair for pair in explored if pair not in named)]:
        first, second = (runs[label] for label in pair)
        scored = [(first[seed][name], second[seed][name]) for seed in first if seed in second]
        if not scored:
            continue
        counted = f"{len(scored)} seed{'' if len(scored) == 1 else 's'}"
        text = f"{pair[0]} - {pair[1]} ({'named beforehand' if pair in named else 'exploration'}, {counted})"
        # At a drop that all runs of both reach, or one would be compared beyond its end.
        drop = min(DROP, *(psnr_loss(run)[-1] for both in scored for run in both))
        if drop <= 0:
            primary.append([text, f"{-drop:.2f} dB", "n/a", "a run has not lost PSNR"])
            continue
        cells = []
        for metric in (JUDGE, *SECONDARY):
            values = np.stack([at_drop(left, drop, metric) - at_drop(right, drop, metric) for left, right in scored])
            values = values[:, ~np.isnan(values).any(axis=0)]
            mean, low, high = bootstrap(values) if values.size else (np.nan,) * 3
            texts = [RECORDS[metric].text(value, sign=True) for value in (mean, low, high)]
            cells.append(f"{texts[0]} [{texts[1]}, {texts[2]}]" if values.size else "n/a")
            if metric == JUDGE:
                # The interval contains 0: the data do not tell which is better.
                verdict = "not shown" if low <= 0 <= high else f"{pair[mean > 0]} is better"
        primary.append([text, f"{-drop:.2f} dB", cells[0], verdict])
        if pair in named:
            secondary.append([f"{pair[0]} - {pair[1]}", *cells[1:]])
    lines = table_lines([f"{RECORDS[JUDGE].label}, difference", "PSNR", "mean [95 %]", ""], primary)
    lines += ["", "Secondary metrics of the comparisons named beforehand, at the same PSNR:", ""]
    return lines + table_lines(["", *(RECORDS[metric].label for metric in SECONDARY)], secondary)


def judged_markdown(study: Study, runs: Runs, sets: Sequence[str], missing: Sequence[str]) -> str:
    """Format what ``judged_runs`` returns: a table and the comparisons for each set."""
    lines = [study.heading, ""]
    if missing:
        lines += [f"Not judged yet: {', '.join(missing)}.", ""]
    lines += ["Mean over the images of a set, then mean and standard deviation over the seeds; the run alone."]
    secondary = ", ".join(RECORDS[metric].label for metric in SECONDARY)
    lines += [f"Judge: {RECORDS[JUDGE].label}. Secondary: {secondary}; the last two are the objectives' own networks."]
    for name in sets:
        scored = {label: [run[name] for run in seeds.values()] for label, seeds in runs.items()}
        start = next(iter(scored.values()))[0]
        rows = []
        # Index 0 of the blends is the start's image, -1 the run's own.
        for label, results, index in (("start (L1)", [start], 0), *((*item, -1) for item in scored.items())):
            row = [label, str(len(results)) if index else ""]
            for metric in COLUMNS:
                # NIQE has no value for small images, and of small images alone no mean.
                known = ~np.isnan(start[metric][:, 0])
                means = [float(result[metric][known, index].mean()) for result in results if known.any()]
                deviation = f" ± {RECORDS[metric].text(stdev(means))}" if len(means) > 1 else ""
                row.append(RECORDS[metric].text(fmean(means) if means else None) + deviation)
            rows.append(row)
        count = len(start[JUDGE])
        lines += ["", f"## {name} ({count} images)", ""]
        lines += table_lines(["", "seeds", *(RECORDS[metric].label for metric in COLUMNS)], rows)
        for metric in COLUMNS:
            record, measured = RECORDS[metric], count - np.isnan(start[metric][:, 0]).sum()
            if measured < count:
                needs = f"it needs {record.enough} blocks of {record.side} x {record.side} pixels"
                lines += ["", f"{record.label}: {measured} of the {count} images; {needs}."]
        lines += ["", f"{RECORDS[JUDGE].label} at the same PSNR below the start's; negative: the first is better.", ""]
        lines += comparison_lines(study, runs, name)
    return "\n".join(lines) + "\n"


def plot_judged(runs: Runs, sets: Sequence[str], path: Path) -> None:
    """Plot the judge against PSNR, one line for each objective: the blends, averaged over images and seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False).ravel()
    for axis, name in zip(axes, sets, strict=True):
        for label, seeds in runs.items():
            x, y = (
                np.mean([run[name][metric].mean(axis=0) for run in seeds.values()], axis=0)
                for metric in (DISTORTION, JUDGE)
            )
            axis.plot(x, y, marker="o", markersize=3, label=label)
        axis.set(title=name, xlabel=RECORDS[DISTORTION].label)
    axes[0].set_ylabel(f"{RECORDS[JUDGE].label} (lower is better)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path, dpi=130)
