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
from dp_basicsr.evaluation.curves import panel_svg, read_run, training_logs, training_panels
from dp_basicsr.evaluation.evaluate import Evaluation
from dp_basicsr.evaluation.files import JSON_NAME, ranks, read_evaluation
from dp_basicsr.metrics import METRICS, Scores
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
    """Write the HTML file ``out``, the report of trainings (experiments/<name>), tests (results/<name>), an evaluation.

    An existing file is replaced atomically. ``quality`` is that of WebP images, 1 to 100, or 101 for lossless; None:
    lossless unless the file gets too large.

    Raises:
        UserError: A folder has nothing to show, two evaluations are given, images no longer exist, or the write
            failed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Escaped, as names of files and option files are shown; a misspelt name in the template is an error.
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Rendered before the old file is touched, so that an error leaves it.
    text = environment.get_template("report.html").render(
        report=collect(folders, quality),
        # Embedded, so that one file shows everything, also without network.
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # as in the tables
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return out


def collect(folders: Sequence[Path], quality: int | None) -> Report:
    """Read everything shown in the report."""
    paths = {folder: folder.resolve() for folder in folders}
    # The folder of every test's evaluation has the same name, its parent the run's.
    names = {folder: path.parent.name if path.name == FOLDER else path.name for folder, path in paths.items()}
    logged = {paths[folder]: names[folder] for folder in folders if training_logs(folder)}
    # Trainings of one name, as on two machines, are told apart by their folders.
    names |= {folder: str(folder) for folder in folders if [*logged.values()].count(logged.get(paths[folder], "")) > 1}
    report = Report(title=", ".join(dict.fromkeys(names.values())))
    for folder in folders:
        evaluation = next((path for path in (folder, folder / FOLDER) if (path / JSON_NAME).is_file()), None)
        if evaluation is None and not training_logs(folder):
            raise UserError(
                f"{folder}: expected a training's folder with train_*.log, or an evaluation with {JSON_NAME} "
                f"(of `{advise('evaluate', '-o')}`, or of a test with `val: save_img: true` and originals in folders)"
            )
        if training_logs(folder):
            _add_training(report, folder, names[folder], is_alone=len(logged) == 1)
        if evaluation:
            # Two evaluations may differ in scale and images, so their means do not belong in one table.
            if report.averages:
                raise UserError(f"{folder}: expected one evaluation, got two; compare methods with one run of evaluate")
            _add_evaluation(report, read_evaluation(evaluation), quality)
    return report


def make_table(
    name: str, head: Sequence[str], lines: Sequence[tuple[tuple[str, ...], Scores]], metrics: Sequence[str]
) -> Table:
    """Build a table of lines that begin with texts; with one text, the method, the best two of a column are ranked."""
    columns = []
    for metric in metrics:
        values = [scores[metric] for _, scores in lines]
        ranked = ranks(values, metric) if len(head) == 1 else [None] * len(values)
        texts, keys = [METRICS[metric].text(value) for value in values], ["" if v is None else v for v in values]
        columns.append([Cell(*cell) for cell in zip(texts, keys, ranked, strict=True)])
    rows = [
        [*(Cell(text, text) for text in texts), *(column[number] for column in columns)]
        for number, (texts, _) in enumerate(lines)
    ]
    highest = [METRICS[metric].label for metric in metrics if METRICS[metric].higher_is_better]
    return Table(name, [*head, *(METRICS[metric].label for metric in metrics)], rows, len(head), highest)


def _add_training(report: Report, folder: Path, name: str, is_alone: bool) -> None:
    curves = read_run(folder)
    for title, panel in training_panels(curves).items():
        # Of several trainings, each panel carries the name of its own.
        shown = title if is_alone else f"{title}\n{name}"
        report.curves[shown] = panel_svg(shown, panel)
    # A log may end after the baseline, before the first line of an iteration.
    report.facts[f"Iterations of {name}"] = f"{curves['lr'][-1][0] if 'lr' in curves else 0:,}"
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in training_logs(folder)]
    # The log of the last start that trained says what it changed.
    told = [text for text in texts if "Options beside " in text][-1:]
    for beside, changes in re.findall(r"Options beside (.+?): (.+)", "".join(told)):
        report.facts[f"{name} beside {beside}"] = changes
    for path in sorted(folder.glob("*.yml")):
        shown = path.name if path.name not in report.option_files else f"{path.name} ({name})"
        report.option_files[shown] = path.read_text(encoding="utf-8", errors="replace")
    # Random features are logged with these words; such curves must not pass for a result.
    if any("RANDOM weights" in text for text in texts):
        report.notes.append(
            f"{name} was trained with perceptual networks of RANDOM weights, for a trial or demo: its losses "
            "compare random features, not those of the paper."
        )


def _add_evaluation(report: Report, evaluation: Evaluation, quality: int | None) -> None:
    for name in evaluation.sets:
        lines = [((method,), evaluation.average(name, method)) for method in evaluation.methods]
        report.averages.append(make_table(evaluation.title(name), ["Method"], lines, evaluation.metrics))
    every = [((image.set_name, image.image, image.method), image.scores) for image in evaluation.images]
    report.images = make_table("Per image", ["Set", "Image", "Method"], every, evaluation.metrics)
    groups: dict[tuple[str, str], list[Any]] = {}
    for image in evaluation.images:
        groups.setdefault((image.set_name, image.image), []).append(image)
    chosen = choose_quality(evaluation) if quality is None else quality
    for (set_name, _), images in groups.items():
        report.viewers.setdefault(set_name, []).append(make_viewer(images, evaluation, chosen))
    for better in ("higher", "lower"):
        records = [METRICS[metric] for metric in evaluation.metrics if METRICS[metric].better == better]
        names = ", ".join(record.label.partition(" [")[0] for record in records)
        report.better += f" {names}: {better} is better." if names else ""
    report.facts |= {
        "Test sets": ", ".join(evaluation.sets),
        "Images": str(len(groups)),
        "Methods": ", ".join(evaluation.methods),
        "Scale": f"x{evaluation.scale}",
    }
    shown = f"as WebP of quality {chosen}, to keep this file small; the numbers were measured on the files themselves"
    report.notes += [
        f"Measured on the 8-bit files, {evaluation.scale} border pixels cropped. RGB is all three channels, Y "
        "is BT.601's luma; a set's value is the mean over its images.",
        f"Images are shown {'losslessly' if chosen > 100 else shown}; in sRGB by their profile, or the original's.",
        *evaluation.notes(),
    ]
