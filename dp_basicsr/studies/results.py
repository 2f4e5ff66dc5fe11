"""Write the tables of a study from its evaluations, and each loss term's share of the gradient over its trainings."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from dp_basicsr.evaluation.curves import Curve, plot_panels, read_run
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import read_evaluation, table_lines
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.options import read_options
from dp_basicsr.options.metrics import DEFAULT
from dp_basicsr.studies.comparing import judged_markdown, judged_runs, plot_judged
from dp_basicsr.studies.runner import StudyRun, present_sets, study_runs
from dp_basicsr.studies.study import Study
from dp_basicsr.utils.staging import StagedFolder

from scipy.stats import spearmanr

# Two readings of the paper's metrics: it says Y, but its own bicubic row is RGB on Set5 and Y on Set14, and it names
# no LPIPS backbone. So every table is written for both.
READINGS: Mapping[str, Mapping[str, str]] = {
    "PSNR and SSIM on RGB, LPIPS with AlexNet": {"psnr": "psnr_rgb", "ssim": "ssim_rgb", "lpips": "lpips_alex"},
    "PSNR and SSIM on Y, LPIPS with VGG-16": {"psnr": "psnr_y", "ssim": "ssim_y", "lpips": "lpips_vgg"},
}

SMOKE_NOTE = "SMOKE: small random networks after a few steps. These numbers are meaningless."

Cells = dict[tuple[str, str], Scores]  # (row label, column) -> our values
SHARES = ("dp_share_", "share_")  # prefixes of a term's name in the log; the second of those that are balanced


def write_study(study: Study, given: Sequence[Method]) -> Path:
    """Write ``table.md`` and ``table.csv`` from the tests done so far, and return their folder; missing values are n/a.

    Studies with seeds have ``judge.png`` in place of the second. If trainings have logged their terms' gradient shares,
    ``shares.png`` plots them, and the table of a study without seeds includes them. Published methods' result images,
    ``given``, fill the rows of these names; those that do not match are a UserError.
    """
    shares = read_shares(study)
    # The runs of a study with seeds were judged by their images, so there are no evaluations to read.
    runs, sets, missing = judged_runs(study) if study.seeds else ({}, [], [])
    if study.seeds:
        texts = {"table.md": judged_markdown(study, runs, sets, missing)}
    else:
        cells = study_cells(study, given)
        # A smoke run has the demo's set in place of the paper's.
        columns = list(dict.fromkeys(column for _, column in cells)) if study.smoke else []
        columns = columns or list(study.sets if study.columns == "sets" else study.bases)
        texts = {"table.md": study_markdown(study, columns, cells), "table.csv": study_csv(study, columns, cells)}
        rows = []
        for label, curves in shares.items():
            for term, curve in curves.items():
                points = [curve[index] for index in (0, len(curve) // 2, -1)]
                rows.append([label, term, *(f"{value:.1%} ({iteration:,})" for iteration, value in points)])
        if rows:
            head = "\n## Share of each term in the gradient norm at the image\n\nThe iteration is in brackets.\n\n"
            table = table_lines(["", "term", "beginning", "middle", "end"], rows)
            texts["table.md"] += head + "\n".join(table) + "\n"
    with StagedFolder(Path("results", "studies", f"{study.prefix}{study.name}"), overwrite=True) as staged:
        for name, text in texts.items():
            (staged.path / name).write_text(text, encoding="utf-8")
        if sets:
            plot_judged(runs, sets, staged.path / "judge.png")
        if shares:
            plot_panels(shares, staged.path / "shares.png")
        return staged.commit()


def study_cells(study: Study, given: Sequence[Method]) -> Cells:
    """Read the evaluations of the trained rows, and measure bicubic and published images on the available sets."""
    measured = []  # label, base, evaluation, method
    for run in study_runs(study):
        if run.is_tested():
            evaluation = read_evaluation(run.evaluation)
            # test.py lists its own method after bicubic.
            measured.append((run.label, run.base, evaluation, evaluation.methods[-1]))
    labels = {row.label for row in study.rows if not row.run}
    methods = [method for method in (Method(BICUBIC, None), *given) if method.name in labels]
    opt = read_options(study.options(next(iter(study.bases)), "test"), study.smoke.test if study.smoke else ())
    sets = [
        find_test_set(Path(entry["dataroot_gt"]), Path(entry["dataroot_lq"]), entry["name"])
        for entry in present_sets(opt)
    ]
    if methods and sets:
        # A smoke run omits LPIPS, whose backbones may need a download.
        metrics = tuple(name for name in DEFAULT if not (study.smoke and METRICS[name].module))
        evaluation = evaluate(sets, methods, opt["scale"], metrics)
        measured += [(method.name, "", evaluation, method.name) for method in methods]
    cells: Cells = {}
    for label, base, evaluation, method in measured:
        if study.columns == "sets":
            cells |= {(label, name): evaluation.average(name, method) for name in evaluation.sets}
        # The columns are networks, all on one set: the study's first, or the demo's.
        elif (name := evaluation.sets[0] if study.smoke else study.sets[0]) in evaluation.sets:
            cells[label, base] = evaluation.average(name, method)
    return cells


def read_shares(study: Study) -> dict[str, dict[str, Curve]]:
    """Read the shares that the rows' trainings have logged, of the first seed: label -> term -> curve."""
    shares: dict[str, dict[str, Curve]] = {}
    first: dict[tuple[str, str], StudyRun] = {}
    for run in study_runs(study):
        first.setdefault((run.label, run.base), run)
    for run in first.values():
        folder = Path("experiments", run.name)
        if not any(folder.glob("train_*.log")):
            continue
        for name, curve in read_run(folder).items():
            if name.startswith(SHARES):
                shares.setdefault(run.label, {})[name.rpartition("share_")[2]] = curve
    # Of a single term there is nothing to see.
    return {label: curves for label, curves in shares.items() if len(curves) > 1}


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
                values = [(METRICS[names[kind]], *compared(study, cells, label, column, names[kind])) for kind in kinds]
                texts = [" / ".join(record.text(ours) for record, ours, *_ in values)]
                if paper:
                    texts.append(" / ".join(record.text(theirs) for record, _, theirs, _ in values))
                    texts.append(" / ".join(record.text(difference, sign=True) for record, *_, difference in values))
                row.append("<br>".join(texts))
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
        writer.writerow([label, column, name, *compared(study, cells, label, column, name)])
    return text.getvalue()


def compared(
    study: Study, cells: Cells, label: str, column: str, name: str
) -> tuple[float | None, float | None, float | None]:
    """Return our value of a metric in a cell, the paper's, and the difference; None for those that there are not."""
    ours = cells.get((label, column), {}).get(name)
    # The paper does not say which variant it is, so its number stands beside each.
    theirs = study.paper.value(label, column, name.split("_")[0]) if study.paper else None
    return ours, theirs, None if ours is None or theirs is None else ours - theirs


def rank_lines(study: Study, columns: Sequence[str], cells: Cells) -> list[str]:
    """Rank correlation of the columns (Section 4.3.4): Spearman's rho, 1 for the same order."""
    labels, paper = study.labels, study.paper
    lines = [f"## Rank correlation of {' and '.join(columns)}", "", f"Spearman's rho over {len(labels)} settings.", ""]
    rows = []
    for name in DEFAULT:
        both = [[compared(study, cells, label, column, name) for label in labels] for column in columns]
        pairs = [[[ours for ours, *_ in values] for values in both]]
        if paper:
            pairs.append([[theirs for _, theirs, _ in values] for values in both])
        row = [METRICS[name].label]
        for first, second in pairs:
            # Where values are missing, or all are equal, no order can be compared.
            known = None not in (*first, *second) and len(set(first)) > 1 and len(set(second)) > 1
            row.append(f"{float(spearmanr(first, second).statistic):+.2f}" if known else "n/a")
        rows.append(row)
    return lines + table_lines(["", "smoke" if study.smoke else "ours", *(["paper"] if paper else [])], rows)
