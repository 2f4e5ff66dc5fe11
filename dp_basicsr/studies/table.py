"""Format a study's table: each cell next to the paper's number and the difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import product

from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.options.metrics import DEFAULT
from dp_basicsr.studies.study import Study

from scipy.stats import spearmanr

# Two readings of the paper's metrics: it says Y, but its own bicubic row is RGB on Set5 and Y on Set14, and it names
# no LPIPS backbone. So every table is written for both.
READINGS: Mapping[str, Mapping[str, str]] = {
    "PSNR and SSIM on RGB, LPIPS with AlexNet": {"psnr": "psnr_rgb", "ssim": "ssim_rgb", "lpips": "lpips_alex"},
    "PSNR and SSIM on Y, LPIPS with VGG-16": {"psnr": "psnr_y", "ssim": "ssim_y", "lpips": "lpips_vgg"},
}

SMOKE_NOTE = "SMOKE: small random networks after a few steps. These numbers are meaningless."

Cells = Mapping[tuple[str, str], Scores]  # (row label, column) -> our values


def study_markdown(study: Study, columns: Sequence[str], cells: Cells) -> str:
    """Format the study's tables as Markdown; a missing cell is n/a."""
    lines, paper = [study.heading, ""], study.paper
    if study.smoke:
        lines += [f"**{SMOKE_NOTE}**"]
    elif paper:
        lines += [f"Each cell: ours / the paper's / the difference. Paper: {paper.source}."]
    kinds = paper.metrics if paper else ("psnr", "ssim", "lpips")

    for reading, names in READINGS.items():
        rows = []
        for label in study.labels:
            row = [label]
            for column in columns:
                texts: list[list[str]] = [[], [], []]
                for kind in kinds:
                    record, ours = METRICS[names[kind]], cells.get((label, column), {}).get(names[kind])
                    theirs = paper.value(label, column, kind) if paper else None
                    texts[0].append(record.text(ours))
                    texts[1].append(record.text(theirs))
                    texts[2].append(record.text(_minus(ours, theirs), sign=True))
                row.append("<br>".join(" / ".join(line) for line in (texts if paper else texts[:1])))
            rows.append(row)
        lines += ["", f"## {reading}", "", f"{' / '.join(kind.upper() for kind in kinds)}", ""]
        lines += table_lines(["", *columns], rows)
    if study.columns == "bases":
        lines += ["", *rank_lines(study, columns, cells)]
    return "\n".join(lines) + "\n"


def study_csv(study: Study, columns: Sequence[str], cells: Cells) -> str:
    """Format one line per row, column and metric: ours, the paper's and the difference (empty without a table)."""
    text = io.StringIO()
    # csv writes None as an empty field.
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "smoke" if study.smoke else "ours", "paper", "difference"])
    for label, column, name in product(study.labels, columns, DEFAULT):
        ours = cells.get((label, column), {}).get(name)
        # The paper does not say which variant it is, so its number stands beside each.
        theirs = study.paper.value(label, column, name.split("_")[0]) if study.paper else None
        writer.writerow([label, column, name, ours, theirs, _minus(ours, theirs)])
    return text.getvalue()


def rank_lines(study: Study, columns: Sequence[str], cells: Cells) -> list[str]:
    """Rank correlation of the columns (Section 4.3.4): Spearman's rho, 1 for the same order."""
    labels, paper = study.labels, study.paper
    lines = [f"## Rank correlation of {' and '.join(columns)}", "", f"Spearman's rho over {len(labels)} settings.", ""]
    rows = []
    for name in DEFAULT:
        pairs = [[[cells.get((label, column), {}).get(name) for label in labels] for column in columns]]
        if paper:
            kind = name.split("_")[0]
            pairs.append([[paper.value(label, column, kind) for label in labels] for column in columns])
        row = [METRICS[name].label]
        for first, second in pairs:
            # Where values are missing, or all are equal, no order can be compared.
            known = None not in (*first, *second) and len(set(first)) > 1 and len(set(second)) > 1
            row.append(f"{float(spearmanr(first, second).statistic):+.2f}" if known else "n/a")
        rows.append(row)
    return lines + table_lines(["", "smoke" if study.smoke else "ours", *(["paper"] if paper else [])], rows)


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
