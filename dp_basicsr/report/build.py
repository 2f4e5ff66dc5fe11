"""Collect the files of runs and evaluations and write them as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.after_test import FOLDER
from dp_basicsr.evaluation.curves import panel_svg, read_run, training_panels
from dp_basicsr.evaluation.evaluate import Evaluation
from dp_basicsr.evaluation.files import JSON_NAME, ranks, read_evaluation
from dp_basicsr.metrics import METRICS
from dp_basicsr.report.images import Viewer, choose_quality, make_viewer
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.atomic_io import replacing

HERE = Path(__file__).resolve().parent


@dataclass
class Cell:
    """A table cell: its text, its sort key, and its rank in the column (0 is the best, None is unranked)."""

    text: str
    value: float | str
    rank: int | None = None


@dataclass
class Table:
    """A sortable table; the first ``text_columns`` columns are text, and higher is better in the ``highest`` ones."""

    name: str
    head: list[str]
    rows: list[list[Cell]]
    text_columns: int = 1
    highest: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Content of the page."""

    title: str
    averages: list[Table] = field(default_factory=list)
    images: Table | None = None
    viewers: dict[str, list[Viewer]] = field(default_factory=dict)
    curves: dict[str, str] = field(default_factory=dict)
    option_files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    better: str = ""


def write_report(folders: Sequence[Path], out: Path, quality: int | None = None) -> Path:
    """Write the report of runs and evaluations.

    Args:
        folders: Folders of trainings (experiments/<name>), tests (results/<name>) or an evaluation.
        out: HTML file to write; an existing one is replaced atomically.
        quality: WebP quality of the images, 1 to 100, or 101 for lossless; None: lossless unless the file gets too
            large.

    Raises:
        UserError: A folder has nothing to show, two evaluations are given, images no longer exist, or the write
            failed.
    """
    report = collect(folders, quality)
    # Rendered before the old file is touched, so that an error leaves it.
    text = render(report)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return out


def collect(folders: Sequence[Path], quality: int | None) -> Report:
    """Read everything shown in the report."""
    report = Report(title=", ".join(dict.fromkeys(_title(folder) for folder in folders)))
    for folder in folders:
        evaluation = next((path for path in (folder, folder / FOLDER) if (path / JSON_NAME).is_file()), None)
        logs = any(folder.glob("train_*.log"))
        if evaluation is None and not logs:
            raise UserError(
                f"{folder}: expected a training's folder with train_*.log, or an evaluation with {JSON_NAME} "
                f"(created by `{advise('evaluate', '-o')}` and by test.py)"
            )
        if logs:
            _add_training(report, folder)
        if evaluation:
            # Two evaluations may differ in scale and images, so their means do not belong in one table.
            if report.averages:
                raise UserError(
                    f"{folder}: expected one evaluation, got two; compare several methods with one run of evaluate"
                )
            _add_evaluation(report, read_evaluation(evaluation), quality)
    return report


def render(report: Report) -> str:
    """Render the page with its style, script and images embedded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Escaped, as names of files and option files are shown; a misspelt name in the template is an error.
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        report=report,
        # Embedded, so that one file shows everything, also without network.
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def average_table(evaluation: Evaluation, set_name: str) -> Table:
    """Build the table of each method's mean on a set, with the best two of each column ranked."""
    averages = [evaluation.average(set_name, method) for method in evaluation.methods]
    columns = [_cells([scores[metric] for scores in averages], metric) for metric in evaluation.metrics]
    rows = [
        [Cell(method, method), *(column[number] for column in columns)]
        for number, method in enumerate(evaluation.methods)
    ]
    count = len(evaluation.of(set_name, evaluation.methods[0]))
    return Table(
        f"{set_name} ({count} image{'' if count == 1 else 's'})",
        ["Method", *_labels(evaluation)],
        rows,
        1,
        _highest(evaluation),
    )


def image_table(evaluation: Evaluation) -> Table:
    """Build the table of every image of every method."""
    rows = [
        [
            *(Cell(text, text) for text in (image.set_name, image.image, image.method)),
            *(_cells([image.scores[metric]], metric)[0] for metric in evaluation.metrics),
        ]
        for image in evaluation.images
    ]
    return Table("Per image", ["Set", "Image", "Method", *_labels(evaluation)], rows, 3, _highest(evaluation))


def _add_training(report: Report, folder: Path) -> None:
    curves = read_run(folder)
    for title, panel in training_panels(curves).items():
        # Of two trainings, the second one's panels carry its name.
        report.curves[title if title not in report.curves else f"{title} ({folder.name})"] = panel_svg(title, panel)
    # A log may end after the baseline, before the first line of an iteration.
    report.facts[f"Iterations of {folder.name}"] = f"{curves['lr'][-1][0] if 'lr' in curves else 0:,}"
    # The last start's log says what it changed.
    logs = sorted(folder.glob("train_*.log"), key=lambda log: log.stat().st_mtime)
    for beside, changes in re.findall(r"Options beside (.+?): (.+)", logs[-1].read_text("utf-8", errors="replace")):
        report.facts[f"{folder.name} beside {beside}"] = changes
    for path in sorted(folder.glob("*.yml")):
        report.option_files[path.name] = path.read_text(encoding="utf-8", errors="replace")
    # Random features are logged with these words; such curves must not pass for a result.
    if any("RANDOM weights" in log.read_text(encoding="utf-8", errors="replace") for log in folder.glob("train_*.log")):
        report.notes.append(
            f"{folder.name} was trained with perceptual networks of RANDOM weights, for a trial or demo: its losses "
            "compare random features, not those of the paper."
        )


def _add_evaluation(report: Report, evaluation: Evaluation, quality: int | None) -> None:
    report.averages = [average_table(evaluation, name) for name in evaluation.sets]
    report.images = image_table(evaluation)
    groups: dict[tuple[str, str], list[Any]] = {}
    for image in evaluation.images:
        groups.setdefault((image.set_name, image.image), []).append(image)
    chosen = choose_quality(evaluation) if quality is None else quality
    for (set_name, _), images in groups.items():
        report.viewers.setdefault(set_name, []).append(make_viewer(images, evaluation, chosen))
    for better, metrics in (("higher", highest := _highest(evaluation)), ("lower", _labels(evaluation))):
        names = ", ".join(name.partition(" [")[0] for name in metrics if better == "higher" or name not in highest)
        report.better += f" {names}: {better} is better." if names else ""
    report.facts |= {
        "Test sets": ", ".join(evaluation.sets),
        "Images": str(len(groups)),
        "Methods": ", ".join(evaluation.methods),
        "Scale": f"x{evaluation.scale}",
    }
    report.notes += [
        f"Measured on the 8-bit files, {evaluation.scale} border pixels cropped. RGB is all three channels, Y "
        "is BT.601's luma; a set's value is the mean over its images.",
        "Images are shown losslessly."
        if chosen > 100
        else f"Images are shown as WebP of quality {chosen}, to keep "
        "this file small; the numbers were measured on the files themselves.",
        *(f"{METRICS[name].label} is n/a: {reason}" for name, reason in evaluation.missing.items()),
        *evaluation.notes(),
    ]


def _cells(values: Sequence[float | None], metric: str) -> list[Cell]:
    return [
        Cell(METRICS[metric].text(value), "" if value is None else value, rank)
        for value, rank in zip(values, ranks(values, metric), strict=True)
    ]


def _labels(evaluation: Evaluation) -> list[str]:
    return [METRICS[name].label for name in evaluation.metrics]


def _highest(evaluation: Evaluation) -> list[str]:
    return [METRICS[name].label for name in evaluation.metrics if METRICS[name].higher_is_better]


def _title(folder: Path) -> str:
    resolved = folder.resolve()
    # The folder of every test's evaluation has the same name, its parent the run's.
    return resolved.parent.name if resolved.name == FOLDER else resolved.name
