"""Write the tables of a study from its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dp_basicsr.evaluation.curves import plot_panels
from dp_basicsr.evaluation.evaluate import Evaluation, evaluate
from dp_basicsr.evaluation.files import read_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.metrics import METRICS, Scores
from dp_basicsr.options import override, read_options
from dp_basicsr.options.metrics import DEFAULT
from dp_basicsr.studies.comparing import judged_markdown, plot_judged
from dp_basicsr.studies.runner import make_job, present_sets
from dp_basicsr.studies.shares import read_shares, share_lines
from dp_basicsr.studies.study import Smoke, Study, paper_tables
from dp_basicsr.studies.table import study_csv, study_markdown
from dp_basicsr.utils.arguments import SHIPPED
from dp_basicsr.utils.staging import StagedFolder

Cells = dict[tuple[str, str], Scores]


def write_study(study: Study, smoke: Smoke | None, given: Sequence[Method], metrics: tuple[str, ...]) -> Path:
    """Write ``table.md`` and ``table.csv`` from the tests done so far; missing values are n/a.

    If trainings have logged their terms' gradient shares, the table includes them and ``shares.png`` plots them.

    Args:
        study: The study.
        smoke: Settings of a smoke run, or None.
        given: Published methods' result images, for the rows of these names.
        metrics: Metrics to compute on images that are not from trainings.

    Returns:
        The folder, results/studies/<study>.

    Raises:
        UserError: Images of ``given`` are missing or do not match.
    """
    # Runs with seeds were judged by their images, so there are no evaluations to read.
    if study.seeds:
        markdown = judged_markdown(study, smoke)
        with StagedFolder(_folder(study, smoke), overwrite=True) as staged:
            (staged.path / "table.md").write_text(markdown, encoding="utf-8")
            plot_judged(study, smoke, staged.path / "judge.png")
            if shares := read_shares(study, smoke):
                plot_panels(shares, staged.path / "shares.png")
            return staged.commit()
    cells = trained_cells(study, smoke) | image_cells(study, smoke, given, metrics)
    # A smoke run has the demo's set in place of the paper's.
    columns = list(dict.fromkeys(column for _, column in cells)) if smoke else []
    columns = columns or list(study.sets if study.columns == "sets" else study.bases)
    # Meaningless numbers are not put beside the paper's.
    paper = None if smoke or study.table is None else paper_tables()[study.table]
    shares = read_shares(study, smoke)
    markdown = study_markdown(study, columns, cells, paper, bool(smoke))
    if shares:
        markdown += "\n".join(["", *share_lines(shares), ""])
    with StagedFolder(_folder(study, smoke), overwrite=True) as staged:
        (staged.path / "table.md").write_text(markdown, encoding="utf-8")
        (staged.path / "table.csv").write_text(study_csv(study, columns, cells, paper, bool(smoke)), encoding="utf-8")
        if shares:
            plot_panels(shares, staged.path / "shares.png")
        return staged.commit()


def _folder(study: Study, smoke: Smoke | None) -> Path:
    return Path("results", "studies", f"{'smoke_' if smoke else ''}{study.name}")


def trained_cells(study: Study, smoke: Smoke | None) -> Cells:
    """Read the evaluations of the trained rows."""
    cells: Cells = {}
    for row in study.rows:
        if row.run and (job := make_job(study, row, smoke)).is_tested():
            cells |= _cells(study, row.label, row.base, read_evaluation(job.evaluation), smoke)
    return cells


def image_cells(study: Study, smoke: Smoke | None, given: Sequence[Method], metrics: tuple[str, ...]) -> Cells:
    """Measure bicubic and published images on the available sets."""
    labels = {row.label for row in study.rows if not row.run}
    methods = [Method(BICUBIC, None)] if BICUBIC in labels else []
    methods += [method for method in given if method.name in labels]
    opt = read_options(SHIPPED / Path(next(iter(study.bases.values()))["test"]).name)
    override(opt, smoke.test if smoke else ())
    sets = [
        find_test_set(Path(entry["dataroot_gt"]), Path(entry["dataroot_lq"]), entry["name"])
        for entry in present_sets(opt)
    ]
    if not (methods and sets):
        return {}
    evaluation = evaluate(sets, methods, opt["scale"], metrics)
    cells: Cells = {}
    for method in methods:
        cells |= _cells(study, method.name, "", evaluation, smoke, method.name)
    return cells


def default_metrics(smoke: Smoke | None) -> tuple[str, ...]:
    """Return the metrics of tables; a smoke run omits LPIPS, whose backbones may need a download."""
    return tuple(name for name in DEFAULT if not (smoke and METRICS[name].module))


def _cells(
    study: Study, label: str, base: str, evaluation: Evaluation, smoke: Smoke | None, method: str = ""
) -> Mapping[tuple[str, str], Scores]:
    # test.py lists its own method after bicubic.
    method = method or evaluation.methods[-1]
    averages = {name: evaluation.average(name, method) for name in evaluation.sets}
    if study.columns == "sets":
        return {(label, name): scores for name, scores in averages.items()}
    # The columns are networks, all on one set: the study's first, or the demo's.
    chosen = averages.get(next(iter(averages)) if smoke else study.sets[0])
    return {(label, base): chosen} if chosen else {}
