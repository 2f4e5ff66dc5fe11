"""Judge the runs of a study with seeds image by image, at the same distortion, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from dp_basicsr.data.imresize import mod_crop
from dp_basicsr.evaluation.evaluate import read_file
from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.images.strict import encode_png
from dp_basicsr.metrics import METRICS, Scores, measure
from dp_basicsr.metrics.scores import in_colour
from dp_basicsr.models.validation import Validator
from dp_basicsr.studies.calibration import read_network, start_of, study_options
from dp_basicsr.studies.runner import StudyRun, make_job, present_sets
from dp_basicsr.studies.study import Smoke, Study
from dp_basicsr.utils.atomic_io import replacing

import numpy as np
import torch
from basicsr.utils import img2tensor, tensor2img
from numpy.typing import NDArray

JUDGE, DISTORTION = "deep", "psnr_y"  # keys of METRICS
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the run's result in the blend with the start's
COLUMNS = (DISTORTION, "ssim_y", JUDGE, "gmsd", "niqe")  # of the table: the start and each run alone
DROP = 0.25  # dB below the start at which objectives are compared, or what all their runs have lost if that is less
DRAWS = 10_000  # of the bootstrap

Array = NDArray[np.float64]
Judged = dict[str, dict[str, list[Scores]]]  # set -> image -> metrics for each of ALPHAS


def judge_runs(study: Study, smoke: Smoke | None, jobs: Sequence[StudyRun]) -> None:
    """Upscale every image of the study's sets with each trained run, and measure the blends; done runs are skipped.

    Writes ``results/<run>/judged.json`` and the images of the run alone, ``results/<run>/<set>/<image>.png``.
    """
    opt = study_options(study, smoke)
    sets = [entry for entry in present_sets(opt) if entry["name"] in study.sets]
    # A smoke run has no start network: its first run stands for it.
    start = start_of(opt) or jobs[0].model
    validator = Validator(opt | {"val": {}}, torch.device("cpu"))
    # The start is the same for all runs, so its images are computed once.
    before: dict[Path, tuple[NDArray[np.uint8], Scores]] = {}  # the start's result and its metrics
    for job in jobs:
        # Judged once for each model: a model that was trained again is newer than its file.
        target = Path("results", job.name, "judged.json")
        if not job.is_trained() or (target.is_file() and target.stat().st_mtime > job.model.stat().st_mtime):
            continue
        network, first = read_network(opt, job.model), read_network(opt, start)
        judged: Judged = {}
        # Images are blended, not weights: the same curve for every architecture, and one pass of the network.
        for entry in sets:
            for path in sorted(Path(entry["dataroot_gt"]).iterdir()):
                gt = in_colour(mod_crop(read_file(path), opt["scale"]))
                lq = in_colour(read_file(Path(entry["dataroot_lq"]) / path.name))
                images = img2tensor(lq.astype(np.float32) / 255, bgr2rgb=True, float32=True)[None]
                if path not in before:
                    image = tensor2img([validator.upscale(first, images)])
                    before[path] = image, measure(image, gt, opt["scale"], COLUMNS)
                result = tensor2img([validator.upscale(network, images)])
                picture = target.parent / entry["name"] / f"{path.stem}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.write_bytes(encode_png(result))
                scores = [before[path][1]]
                for alpha in ALPHAS[1:]:
                    # The table shows the runs alone; the blends need only the two axes of the curve.
                    metrics = COLUMNS if alpha == 1 else (DISTORTION, JUDGE)
                    scores.append(measure(blend(before[path][0], result, alpha), gt, opt["scale"], metrics))
                judged.setdefault(entry["name"], {})[path.stem] = scores
        # The file marks the run as judged, so it must be complete.
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(judged), encoding="utf-8")
        print(f"{job.name}: judged", flush=True)


def blend(start: NDArray[np.uint8], result: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """Return (1 - alpha) * start + alpha * result, rounded."""
    return np.floor((1 - alpha) * start + alpha * result.astype(np.float64) + 0.5).astype(np.uint8)


def read_judged(study: Study, smoke: Smoke | None) -> dict[str, dict[int, Judged]]:
    """Return what was judged so far: label -> seed -> scores."""
    judged: dict[str, dict[int, Judged]] = {}
    for row in study.rows:
        for seed in study.seeds:
            path = Path("results", make_job(study, row, smoke, seed).name, "judged.json")
            if path.is_file():
                judged.setdefault(row.label, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    return judged


def curve(judged: Judged, name: str, metric: str) -> Array:
    """Return a metric of one set: (images, ALPHAS)."""
    return np.array([[scores[metric] for scores in image] for image in judged[name].values()], np.float64)


def psnr_loss(judged: Judged, name: str) -> Array:
    """Return by how much the mean PSNR of a set is below the start's, in dB: (ALPHAS,)."""
    means = curve(judged, name, DISTORTION).mean(axis=0)
    return np.asarray(means[0] - means)


def at_drop(judged: Judged, name: str, drop: float) -> Array:
    """Return the judge's value of each image where the set's mean PSNR is ``drop`` dB below the start's.

    Between two of ALPHAS, PSNR and judge are interpolated linearly. Of several crossings the last one counts, because
    a blend may first gain PSNR. The run alone must have lost as much.
    """
    lost, values = psnr_loss(judged, name), curve(judged, name, JUDGE)
    # lost[last + 1] is at least `drop`, because the last one is: the division is safe.
    last = max(index for index in range(len(ALPHAS) - 1) if lost[index] < drop)
    part = (drop - lost[last]) / (lost[last + 1] - lost[last])
    return np.asarray((1 - part) * values[:, last] + part * values[:, last + 1])


def bootstrap(differences: Array, draws: int = DRAWS) -> tuple[float, float, float]:
    """Return the mean of paired differences, (seeds, images), and its 95 % interval over images and seeds.

    Each draw takes as many seeds and as many images, both with replacement.
    """
    # Images and seeds are drawn apart: a seed's effect on all images is not averaged away by many images.
    rng = np.random.default_rng(0)
    seeds, images = differences.shape
    means = [
        differences[np.ix_(rng.integers(seeds, size=seeds), rng.integers(images, size=images))].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def comparison_lines(study: Study, runs: Mapping[str, Mapping[int, Judged]], name: str) -> list[str]:
    """Compare objectives in pairs on one set: the comparisons named beforehand, then Eq. 9 with all others."""
    named = [tuple(pair) for pair in study.comparisons if set(pair) <= runs.keys()]
    first = study.comparisons[0][0] if study.comparisons else ""
    # Eq. 9 is named first in the study's comparisons.
    others = [(first, label) for label in runs if first in runs and label != first and (first, label) not in named]
    rows = []
    for one, other in [*named, *others]:
        kind = "named beforehand" if (one, other) in named else "exploration"
        seeds = sorted(runs[one].keys() & runs[other].keys())
        if not seeds:
            continue
        # At a drop that all runs of both reach, or one would be compared beyond its end.
        drop = min(DROP, *(psnr_loss(runs[label][seed], name)[-1] for label in (one, other) for seed in seeds))
        text = ["n/a", "a run has not lost PSNR"]
        if drop > 0:
            pairs = [[at_drop(runs[label][seed], name, drop) for label in (one, other)] for seed in seeds]
            mean, low, high = bootstrap(np.stack([left - right for left, right in pairs]))
            # The interval contains 0: the data do not tell which is better.
            verdict = "not shown" if low <= 0 <= high else f"{one if mean < 0 else other} is better"
            text = [f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", verdict]
        rows.append([f"{one} - {other} ({kind})", f"{-drop:.2f} dB", *text])
    return table_lines(["judge's difference", "PSNR", "mean [95 %]", ""], rows)


def mean_text(values: Sequence[float | None], metric: str) -> str:
    """Format the mean and the standard deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    deviation = f" ± {METRICS[metric].text(stdev(known))}" if len(known) > 1 else ""
    return METRICS[metric].text(fmean(known)) + deviation


def judged_markdown(study: Study, smoke: Smoke | None) -> str:
    """Format a table and the comparisons for each set."""
    runs = read_judged(study, smoke)
    lines = [f"# {'SMOKE of s' if smoke else 'S'}tudy {study.name}: {study.title}", ""]
    lines += ["Mean over the images of a set, then mean and standard deviation over the seeds; the run alone."]
    for name in study.sets:
        shown = {label: {seed: run for seed, run in seeds.items() if name in run} for label, seeds in runs.items()}
        shown = {label: seeds for label, seeds in shown.items() if seeds}
        # Sets that are not on this machine were not judged.
        if not shown:
            continue
        any_run = next(iter(next(iter(shown.values())).values()))
        rows = []
        # Index 0 of the blends is the start's image, -1 the run's own.
        for label, seeds, index in (("start (L1)", {0: any_run}, 0), *((*item, -1) for item in shown.items())):
            values = {metric: [mean_of(run, name, metric, index) for run in seeds.values()] for metric in COLUMNS}
            texts = [mean_text(value, metric) for metric, value in values.items()]
            rows.append([label, str(len(seeds)) if index else "", *texts])
        lines += ["", f"## {name} ({len(any_run[name])} images)", ""]
        lines += table_lines(["", "seeds", *(METRICS[metric].label for metric in COLUMNS)], rows)
        lines += ["", f"{METRICS[JUDGE].label} at the same PSNR below the start's; negative: the first is better.", ""]
        lines += comparison_lines(study, shown, name)
    return "\n".join(lines) + "\n"


def mean_of(judged: Judged, name: str, metric: str, index: int) -> float | None:
    """Return the mean of a metric over a set's images that have it, for one of ALPHAS."""
    values = [image[index].get(metric) for image in judged[name].values()]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def plot_judged(study: Study, smoke: Smoke | None, path: Path) -> None:
    """Plot the judge against PSNR, one line for each objective: the blends, averaged over images and seeds."""
    from matplotlib.figure import Figure

    runs = read_judged(study, smoke)
    sets = [name for name in study.sets if any(name in run for seeds in runs.values() for run in seeds.values())]
    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False).ravel()
    for axis, name in zip(axes, sets, strict=True):
        for label, seeds in runs.items():
            means = [
                [curve(run, name, metric).mean(axis=0) for run in seeds.values()] for metric in (DISTORTION, JUDGE)
            ]
            axis.plot(*(np.mean(values, axis=0) for values in means), marker="o", markersize=3, label=label)
        axis.set(title=name, xlabel=METRICS[DISTORTION].label)
    axes[0].set_ylabel(f"{METRICS[JUDGE].label} (lower is better)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
