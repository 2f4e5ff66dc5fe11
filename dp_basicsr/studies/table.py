"""Format a study's table: each cell next to the paper's number and the difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import product

from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.options.metrics import DEFAULT
from dp_basicsr.studies.study import PaperTable, Study, paper_source

from scipy.stats import spearmanr

# Two readings of the paper's metrics: it says Y, but its own bicubic row is RGB on Set5 and Y on Set14, and it names
# no LPIPS backbone. So every table is written for both.
READINGS: Mapping[str, Mapping[str, str]] = {
    "PSNR and SSIM on RGB, LPIPS with AlexNet": {"psnr": "psnr_rgb", "ssim": "ssim_rgb", "lpips": "lpips_alex"},
    "PSNR and SSIM on Y, LPIPS with VGG-16": {"psnr": "psnr_y", "ssim": "ssim_y", "lpips": "lpips_vgg"},
}

SMOKE_NOTE = "SMOKE: small random networks after a few steps. These numbers are meaningless."

Cells = Mapping[tuple[str, str], Scores]  # (row label, column) -> our values


def study_markdown(
    study: Study, columns: Sequence[str], cells: Cells, paper: PaperTable | None, smoke: bool = False
) -> str:
    """Format the study's tables as Markdown.

    Args:
        study: The study.
        columns: Column headers.
        cells: Measured values; a missing cell is n/a.
        paper: The paper's table, or None if it has none.
        smoke: Mark the numbers as meaningless.
    """
    title = f"Table {study.table}: {study.title}" if study.table else f"Study {study.name}: {study.title}"
    lines = [f"# {f'SMOKE of {title}' if smoke else title}", ""]
    if smoke:
        lines += [f"**{SMOKE_NOTE}**"]
    elif paper:
        lines += [f"Each cell: ours / the paper's / the difference. Paper: {paper_source()}."]
    kinds = paper.metrics if paper else ("psnr", "ssim", "lpips")

    def cell(label: str, column: str, names: Mapping[str, str]) -> str:
        rows = [[cells.get((label, column), {}).get(names[kind]) for kind in kinds]]
        if paper:
            rows.append([paper.value(label, column, kind) for kind in kinds])
            rows.append([_minus(ours, theirs) for ours, theirs in zip(*rows, strict=True)])
        records = [METRICS[names[kind]] for kind in kinds]
        # The difference, in the third row, has a sign.
        texts = [
            [record.text(value, sign=number == 2) for record, value in zip(records, row, strict=True)]
            for number, row in enumerate(rows)
        ]
        return "<br>".join(" / ".join(row) for row in texts)

    labels = labels_of(study)
    for reading, names in READINGS.items():
        lines += ["", f"## {reading}", "", f"{' / '.join(kind.upper() for kind in kinds)}", ""]
        lines += table_lines(
            ["", *columns], [[label, *(cell(label, column, names) for column in columns)] for label in labels]
        )
    if study.columns == "bases":
        lines += ["", *rank_lines(labels, columns, cells, paper, smoke)]
    return "\n".join(lines) + "\n"


def study_csv(study: Study, columns: Sequence[str], cells: Cells, paper: PaperTable | None, smoke: bool = False) -> str:
    """Format one line per row, column and metric: ours, the paper's and the difference (empty without a table)."""
    text = io.StringIO()
    # csv writes None as an empty field.
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "smoke" if smoke else "ours", "paper", "difference"])
    for label, column, name in product(labels_of(study), columns, DEFAULT):
        ours = cells.get((label, column), {}).get(name)
        # The paper does not say which variant it is, so its number stands beside each.
        theirs = paper.value(label, column, name.split("_")[0]) if paper else None
        writer.writerow([label, column, name, ours, theirs, _minus(ours, theirs)])
    return text.getvalue()


def labels_of(study: Study) -> list[str]:
    """Return the labels of a table: two rows of one label are one setting on two bases, side by side."""
    return list(dict.fromkeys(row.label for row in study.rows))


def rank_lines(
    labels: Sequence[str], columns: Sequence[str], cells: Cells, paper: PaperTable | None, smoke: bool = False
) -> list[str]:
    """Rank correlation of the columns (Section 4.3.4): Spearman's rho, 1 for the same order."""
    lines = [f"## Rank correlation of {' and '.join(columns)}", "", f"Spearman's rho over {len(labels)} settings.", ""]
    rows = []
    for name in DEFAULT:
        values = [[[cells.get((label, column), {}).get(name) for label in labels] for column in columns]]
        if paper:
            kind = name.split("_")[0]
            values.append([[paper.value(label, column, kind) for label in labels] for column in columns])
        rows.append([METRICS[name].label, *(_rho(*pair) for pair in values)])
    return lines + table_lines(["", "smoke" if smoke else "ours", *(["paper"] if paper else [])], rows)


def _rho(first: Sequence[float | None], second: Sequence[float | None]) -> str:
    if None in first or None in second or len(set(first)) == 1 or len(set(second)) == 1:
        # Values are missing, or all are equal: no order can be compared.
        return "n/a"
    return f"{float(spearmanr(first, second).statistic):+.2f}"


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
