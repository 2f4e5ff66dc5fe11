"""Write and read the files of an evaluation: a CSV of all images, JSON and a Markdown table."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import Evaluation, Measured
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.staging import StagedFolder, refuse_existing

JSON_NAME = "evaluation.json"
CSV_NAME = "per_image.csv"
MARKDOWN_NAME = "table.md"
FILES = ("gt", "lr", "result")  # keys of an image's files

BAR = r"\|"  # within a cell of Markdown
MARKUP = re.compile(r"[\\`*\[]|(?<![^\W_])_|_(?![^\W_])")  # what Markdown does not show; "_" within a word is shown


def refuse_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that an evaluation may not become (UserError)."""
    # `--overwrite` replaces the whole folder, so it must never be one with anything else in it.
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON_NAME).is_file():
        raise UserError(f"{folder} contains something other than an evaluation: choose another folder")
    refuse_existing([folder], overwrite=overwrite, empty=True)


def write_evaluation(evaluation: Evaluation, folder: Path, *, overwrite: bool = False) -> Path:
    """Write ``per_image.csv``, ``evaluation.json`` and ``table.md`` into a new folder.

    The folder appears when all files are written; ``overwrite`` replaces an earlier evaluation, never another folder.
    """
    refuse_folder(folder, overwrite=overwrite)
    with StagedFolder(folder, overwrite=overwrite) as staged:
        texts = {
            CSV_NAME: csv_text(evaluation),
            JSON_NAME: json.dumps(as_json(evaluation, folder), indent=1, allow_nan=False) + "\n",
            MARKDOWN_NAME: markdown(evaluation),
        }
        try:
            for name, text in texts.items():
                # A name that is no UTF-8, or read under LC_ALL=C, comes out as the bytes that it is on the disk.
                (staged.path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror}") from error
        return staged.commit()


def read_evaluation(folder: Path) -> Evaluation:
    """Read what ``write_evaluation`` wrote; a missing or damaged evaluation is a UserError."""
    path = folder / JSON_NAME

    def image_of(entry: dict[str, Any]) -> Measured:
        set_name, image, method = (str(entry[key]) for key in ("set", "image", "method"))
        # Relative to the evaluation, so that results can be moved together with it.
        gt, lr, result = (Path(os.path.normpath(folder / entry[key])) if entry[key] else None for key in FILES)
        # Every metric of the tables, or a KeyError.
        values = {name: entry["scores"][name] for name in data["metrics"]}
        scores = {name: None if value is None else float(value) for name, value in values.items()}
        return Measured(set_name, image, method, gt or Path(), lr, result, scores, entry.get("checksum"))

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        metrics, missing, lossy = tuple(data["metrics"]), dict(data["missing"]), dict(data.get("lossy", {}))
        if unknown := {*metrics, *missing} - METRICS.keys():
            raise ValueError(f"metrics that are unknown here: {', '.join(sorted(map(str, unknown)))}")
        if data["scale"] < 1:
            raise ValueError(f"scale {data['scale']}")
        return Evaluation(int(data["scale"]), metrics, missing, tuple(map(image_of, data["images"])), lossy)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `{advise('evaluate')}` and test.py create it") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not an evaluation of dp_basicsr ({error!r}); create it again") from error


def as_json(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Convert to JSON types: n/a is null, an infinite PSNR is "inf", paths are relative to ``folder``."""

    def finite(scores: Scores) -> dict[str, float | str | None]:
        return {name: "inf" if value == math.inf else value for name, value in scores.items()}

    images = []
    for image in evaluation.images:
        entry: dict[str, Any] = {"set": image.set_name, "image": image.image, "method": image.method}
        for key, path in zip(FILES, (image.gt, image.lr, image.result), strict=True):
            entry[key] = None if path is None else Path(os.path.relpath(path, folder)).as_posix()
        images.append(entry | {"scores": finite(image.scores), "checksum": image.checksum})
    averages = {
        name: {method: finite(evaluation.average(name, method)) for method in evaluation.methods}
        for name in evaluation.sets
    }
    return {
        "scale": evaluation.scale,
        # For readers of the file; the number of cropped pixels is always the scale.
        "crop_border": evaluation.scale,
        "metrics": list(evaluation.metrics),
        "missing": evaluation.missing,
        "lossy": evaluation.lossy,
        "averages": averages,
        "images": images,
    }


def csv_text(evaluation: Evaluation) -> str:
    """Format one line per image and method; full precision, ``n/a`` for missing values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "image", "method", *evaluation.metrics])
    for image in evaluation.images:
        shown = ("n/a" if (value := image.scores[name]) is None else value for name in evaluation.metrics)
        writer.writerow([image.set_name, image.image, image.method, *shown])
    return text.getvalue()


def markdown(evaluation: Evaluation) -> str:
    """Format one table per set with **best** and *second best* of each column, and the measurement settings."""
    lines = [f"x{evaluation.scale}; {evaluation.scale} border pixels cropped; mean over the images of a set."]
    if len(evaluation.methods) > 1:
        lines.append("**Best**" + (", *second best*." if len(evaluation.methods) > 2 else "."))
    for name in evaluation.sets:
        averages = [evaluation.average(name, method) for method in evaluation.methods]
        columns = [mark_best([scores[metric] for scores in averages], metric) for metric in evaluation.metrics]
        lines += ["", f"### {evaluation.title(name)}", ""]
        names = [MARKUP.sub(r"\\\g<0>", method).replace("<", "&lt;") for method in evaluation.methods]
        rows = [[method, *(column[row] for column in columns)] for row, method in enumerate(names)]
        lines += table_lines(["", *(METRICS[metric].label for metric in evaluation.metrics)], rows)
    lines += [f"\n{note}" for note in evaluation.notes()]
    return "\n".join(lines) + "\n"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table: the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in (head, rule, *rows)]


def ranks(values: Sequence[float | None], metric: str) -> list[int | None]:
    """Rank the values, 0 for the best; values printed alike are equal; None for n/a or if all are equal."""
    digits, sign = METRICS[metric].digits, -1 if METRICS[metric].higher_is_better else 1
    printed = [None if value is None else sign * round(value, digits) for value in values]
    # Of the printed values: what reads alike in the table is marked alike.
    order = sorted({value for value in printed if value is not None})
    return [None if value is None or len(values) < 2 else order.index(value) for value in printed]


def mark_best(values: Sequence[float | None], metric: str) -> list[str]:
    """Format the values as Markdown with the best one marked, and the second best of at least three."""
    # Of two methods, the second best is the worst.
    marks = {0: "**", 1: "*" if len(values) > 2 else ""}
    texts = (METRICS[metric].text(value) for value in values)
    ranked = (marks.get(-1 if rank is None else rank, "") for rank in ranks(values, metric))
    return [f"{mark}{text}{mark}" for text, mark in zip(texts, ranked, strict=True)]
