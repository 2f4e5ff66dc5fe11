"""Each loss term's share of the gradient at the image, over the trainings of a study."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.evaluation.curves import Curve, read_run
from dp_basicsr.evaluation.files import table_lines
from dp_basicsr.studies.runner import make_job, seeds_of
from dp_basicsr.studies.study import Smoke, Study

SHARE = "dp_share_"  # prefix of a term's name in the log


def read_shares(study: Study, smoke: Smoke | None) -> dict[str, dict[str, Curve]]:
    """Read the shares logged by the rows' trainings: label -> term -> curve. Rows without any are omitted."""
    shares: dict[str, dict[str, Curve]] = {}
    for row in study.rows:
        seed = next(iter(seeds_of(study, row)), None)
        folder = Path("experiments", make_job(study, row, smoke, seed).name) if row.run else Path()
        if row.run and any(folder.glob("train_*.log")):
            curves = read_run(folder)
            shares[row.label] = {
                name.removeprefix(SHARE): curve for name, curve in curves.items() if name.startswith(SHARE)
            }
    return {label: curves for label, curves in shares.items() if curves}


def share_lines(shares: dict[str, dict[str, Curve]]) -> list[str]:
    """Format as Markdown each term's share at the start, middle and end of each row's training."""
    rows = []
    for label, curves in shares.items():
        for term, curve in curves.items():
            points = [curve[index] for index in (0, len(curve) // 2, -1)]
            rows.append([label, term, *(f"{value:.1%} ({iteration:,})" for iteration, value in points)])
    head = ["## Share of each term in the gradient norm at the image", "", "The iteration is in brackets.", ""]
    return head + table_lines(["", "term", "beginning", "middle", "end"], rows)
