"""Compare the judged objectives of a study at the same distortion, with intervals: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

from dp_basicsr.evaluation.figures import save_figure
from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.studies.judging import ALPHAS, COLUMNS, DISTORTION, JUDGE, RECORDS, SECONDARY, Judged, read_judged
from dp_basicsr.studies.runner import make_job, seeds_of
from dp_basicsr.studies.study import Smoke, Study

import numpy as np
from numpy.typing import NDArray

DROP = 0.25  # dB below the start at which objectives are compared, or what all their runs have lost if that is less
DRAWS = 10_000  # of the bootstrap

Array = NDArray[np.float64]
Runs = Mapping[str, Mapping[int, Judged]]  # label -> seed -> scores


def curve(judged: Judged, name: str, metric: str) -> Array:
    """Return a metric of one set: (images, ALPHAS); NaN for an image that has no value."""
    return np.array([[scores[metric] for scores in image] for image in judged[name].values()], np.float64)


def psnr_loss(judged: Judged, name: str) -> Array:
    """Return by how much the mean PSNR of a set is below the start's, in dB: (ALPHAS,)."""
    means = curve(judged, name, DISTORTION).mean(axis=0)
    return np.asarray(means[0] - means)


def at_drop(judged: Judged, name: str, drop: float, metric: str = JUDGE) -> Array:
    """Return a metric of each image where the set's mean PSNR is ``drop`` dB below the start's.

    Between two of ALPHAS, PSNR and metric are interpolated linearly. Of several crossings the last one counts, because
    a blend may first gain PSNR. The run alone must have lost as much.
    """
    lost, values = psnr_loss(judged, name), curve(judged, name, metric)
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


def difference(left: Mapping[int, Judged], right: Mapping[int, Judged], name: str, drop: float, metric: str) -> Array:
    """Return left minus right at the same PSNR, (seeds, images), of the images that have values."""
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    values = np.stack([at_drop(one, name, drop, metric) - at_drop(two, name, drop, metric) for one, two in pairs])
    return values[:, ~np.isnan(values).any(axis=0)]


def comparison_lines(study: Study, runs: Runs, name: str) -> list[str]:
    """Compare objectives in pairs on one set by the judge, and those named beforehand by the secondary metrics too."""
    named = [tuple(pair) for pair in study.comparisons if set(pair) <= runs.keys()]
    labels = list(dict.fromkeys(label for pair in named for label in pair))
    # Eq. 9 is named first in the study's comparisons. Explored: it with all others, and those that it is named with.
    explored = [(labels[0], label) for label in runs if label != labels[0]] if labels else []
    explored += list(combinations(labels[1:], 2))
    primary, secondary = [], []
    for pair in [*named, *(pair for pair in explored if pair not in named)]:
        left, right = (runs[label] for label in pair)
        seeds = left.keys() & right.keys()
        if not seeds:
            continue
        counted = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
        text = f"{pair[0]} - {pair[1]} ({'named beforehand' if pair in named else 'exploration'}, {counted})"
        # At a drop that all runs of both reach, or one would be compared beyond its end.
        drop = min(DROP, *(psnr_loss(run[seed], name)[-1] for run in (left, right) for seed in seeds))
        if drop <= 0:
            primary.append([text, f"{-drop:.2f} dB", "n/a", "a run has not lost PSNR"])
            continue
        mean, low, high = bootstrap(difference(left, right, name, drop, JUDGE))
        # The interval contains 0: the data do not tell which is better.
        verdict = "not shown" if low <= 0 <= high else f"{pair[mean > 0]} is better"
        primary.append([text, f"{-drop:.2f} dB", interval_text(mean, low, high, JUDGE), verdict])
        if pair in named:
            cells = [(difference(left, right, name, drop, metric), metric) for metric in SECONDARY]
            texts = [interval_text(*bootstrap(values), metric) if values.size else "n/a" for values, metric in cells]
            secondary.append([f"{pair[0]} - {pair[1]}", *texts])
    lines = table_lines([f"{RECORDS[JUDGE].label}, difference", "PSNR", "mean [95 %]", ""], primary)
    lines += ["", "Secondary metrics of the comparisons named beforehand, at the same PSNR:", ""]
    return lines + table_lines(["", *(RECORDS[metric].label for metric in SECONDARY)], secondary)


def interval_text(mean: float, low: float, high: float, metric: str) -> str:
    """Format a difference and its interval."""
    first, second, third = (RECORDS[metric].text(value, sign=True) for value in (mean, low, high))
    return f"{first} [{second}, {third}]"


def judged_runs(study: Study, smoke: Smoke | None) -> tuple[Runs, list[str]]:
    """Return what was judged so far, and the names of the runs that were not."""
    judged: dict[str, dict[int, Judged]] = {}
    missing = []
    for row in study.rows:
        for seed in seeds_of(study, row):
            job = make_job(study, row, smoke, seed)
            if run := read_judged(job):
                judged.setdefault(row.label, {})[seed] = run
            else:
                missing.append(job.name)
    return judged, missing


def judged_markdown(study: Study, smoke: Smoke | None) -> str:
    """Format a table and the comparisons for each set."""
    runs, missing = judged_runs(study, smoke)
    lines = [f"# {'SMOKE of s' if smoke else 'S'}tudy {study.name}: {study.title}", ""]
    if missing:
        lines += [f"Not judged yet: {', '.join(missing)}.", ""]
    lines += ["Mean over the images of a set, then mean and standard deviation over the seeds; the run alone."]
    secondary = ", ".join(RECORDS[metric].label for metric in SECONDARY)
    lines += [
        f"{RECORDS[JUDGE].label}: the judge. Secondary: {secondary}; the last two are networks that the objectives use."
    ]
    # Sets that are not on this machine were not judged.
    for name in (name for name in study.sets if any(name in run for seeds in runs.values() for run in seeds.values())):
        images = next(iter(next(iter(runs.values())).values()))[name]
        rows = []
        # Index 0 of the blends is the start's image, -1 the run's own.
        for label, seeds, index in (("start (L1)", {0: {name: images}}, 0), *((*item, -1) for item in runs.items())):
            means = {metric: [mean_of(run, name, metric, index) for run in seeds.values()] for metric in COLUMNS}
            texts = [mean_text(values, metric) for metric, values in means.items()]
            rows.append([label, str(len(seeds)) if index else "", *texts])
        lines += ["", f"## {name} ({len(images)} images)", ""]
        lines += table_lines(["", "seeds", *(RECORDS[metric].label for metric in COLUMNS)], rows)
        for metric in COLUMNS:
            measured = sum(scores[0][metric] is not None for scores in images.values())
            if measured < len(images):
                record = RECORDS[metric]
                needs = f"it needs {record.enough} blocks of {record.side} x {record.side} pixels"
                lines += ["", f"{record.label}: {measured} of the {len(images)} images; {needs}."]
        lines += ["", f"{RECORDS[JUDGE].label} at the same PSNR below the start's; negative: the first is better.", ""]
        lines += comparison_lines(study, runs, name)
    return "\n".join(lines) + "\n"


def mean_of(judged: Judged, name: str, metric: str, index: int) -> float | None:
    """Return the mean of a metric over a set's images that have it, for one of ALPHAS."""
    known = [value for image in judged[name].values() if (value := image[index][metric]) is not None]
    return fmean(known) if known else None


def mean_text(values: Sequence[float | None], metric: str) -> str:
    """Format the mean and the standard deviation over seeds."""
    known = [value for value in values if value is not None]
    deviation = f" ± {RECORDS[metric].text(stdev(known))}" if len(known) > 1 else ""
    return RECORDS[metric].text(fmean(known) if known else None) + deviation


def plot_judged(study: Study, smoke: Smoke | None, path: Path) -> None:
    """Plot the judge against PSNR, one line for each objective: the blends, averaged over images and seeds."""
    from matplotlib.figure import Figure

    runs, _ = judged_runs(study, smoke)
    sets = [name for name in study.sets if any(name in run for seeds in runs.values() for run in seeds.values())]
    if not sets:
        return
    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False).ravel()
    for axis, name in zip(axes, sets, strict=True):
        for label, seeds in runs.items():
            means = [
                [curve(run, name, metric).mean(axis=0) for run in seeds.values()] for metric in (DISTORTION, JUDGE)
            ]
            axis.plot(*(np.mean(values, axis=0) for values in means), marker="o", markersize=3, label=label)
        axis.set(title=name, xlabel=RECORDS[DISTORTION].label)
    axes[0].set_ylabel(f"{RECORDS[JUDGE].label} (lower is better)")
    axes[0].legend(fontsize=8)
    save_figure(figure, path, dpi=130)
