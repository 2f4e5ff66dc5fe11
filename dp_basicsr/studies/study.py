"""Declarations of studies: base option files and the overrides that make each row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.errors import UserError
from dp_basicsr.utils.arguments import SHIPPED

STUDIES = SHIPPED / "studies"
PAPER = Path(__file__).with_name("paper.yml")

# A list, not the folder's files, which include the settings of smoke runs.
NAMES = ("mu", "beta", "networks", "correlation", "comparison", "ablation", "terms", "small")


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    label: str  # in the paper's table
    base: str = ""  # name of its option files; empty for images that are not trained here
    run: str = ""  # name of the training, shared with other studies; empty without one
    overrides: tuple[str, ...] = ()  # of the base, in the form of ``--force_yml``
    # Which gradient ``loss_weight`` is calibrated for, see ``calibration.py``; empty: none.
    calibrated: Literal["", "vgg", "resnet", "static", "dynamic"] = ""
    times: float = 1  # factor of the calibrated ``loss_weight``
    # If not the study's; such a row is an exploration, and trained after all others.
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """A table as printed in the paper: values in the order of ``metrics``, by row and column."""

    source: str
    metrics: tuple[str, ...]
    rows: dict[str, dict[str, list[float]]]

    def value(self, row: str, column: str, kind: str) -> float | None:
        """Return the value of one metric (``psnr``, ``ssim``, ``lpips``), or None if the paper has none."""
        values = self.rows.get(row, {}).get(column)
        # Not every table of the paper has every metric, nor every row every column.
        return values[self.metrics.index(kind)] if values and kind in self.metrics else None


@dataclass(frozen=True)
class Smoke:
    """Overrides that reduce any row to a trial of a few seconds, see ``options/studies/smoke.yml``."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    network: dict[str, list[str]]


@dataclass(frozen=True)
class Study:
    """A table to train and test, from the paper or beyond it."""

    name: str  # on the command line
    table: int | None  # its number in the paper; None if it is not in the paper
    title: str  # what it varies
    sets: tuple[str, ...]  # test sets
    columns: Literal["sets", "bases"]  # the test sets, or the bases (Table 5, on one set)
    bases: dict[str, dict[str, str]]  # option files ``train`` and ``test`` by the name of the base
    rows: tuple[Row, ...]  # in the paper's order
    # Each row is trained once with each; such a study is judged by images, see ``judging.py``.
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()  # of every row
    # Pairs of labels that were named before the trainings; all others are exploration.
    comparisons: tuple[tuple[str, str], ...] = ()
    smoke: Smoke | None = None  # settings of a smoke run, whose numbers are meaningless

    @property
    def prefix(self) -> str:
        """Begin the names of a smoke run's files with this."""
        return "smoke_" if self.smoke else ""

    @property
    def heading(self) -> str:
        """Return the heading of the tables."""
        title = f"{f'Table {self.table}' if self.table else f'Study {self.name}'}: {self.title}"
        return f"# {'SMOKE of ' if self.smoke else ''}{title}"

    @property
    def labels(self) -> list[str]:
        """Return the labels of the table: two rows of one label are one setting on two bases, side by side."""
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def paper(self) -> PaperTable | None:
        """Return the paper's table; None for a smoke run, whose numbers are not put beside the paper's."""
        return None if self.smoke or self.table is None else paper_tables()[self.table]

    def options(self, base: str, program: Literal["train", "test"]) -> Path:
        """Return the option file of a base."""
        # By name, because an installed package has the option files in another folder than a checkout.
        return SHIPPED / Path(self.bases[base][program]).name


def read_study(name: str) -> Study:
    """Read ``options/studies/<name>.yml``, of one of ``NAMES``."""
    data = _read(STUDIES / f"{name}.yml")
    rows = data.pop("rows")
    # YAML has lists, and a frozen record tuples.
    for record in (data, *rows):
        record.update({key: tuple(value) for key, value in record.items() if isinstance(value, list)})
    return Study(name=name, rows=tuple(Row(**row) for row in rows), **data)


def read_smoke() -> Smoke:
    """Read ``options/studies/smoke.yml``."""
    data = _read(STUDIES / "smoke.yml")
    return Smoke(tuple(data["train"]), tuple(data["test"]), data["network"])


@lru_cache
def paper_tables() -> dict[int, PaperTable]:
    """Return the paper's tables by number."""
    data = _read(PAPER)
    return {
        number: PaperTable(data["source"], tuple(table["metrics"]), table["rows"])
        for number, table in data["tables"].items()
    }


def _read(path: Path) -> dict[str, Any]:
    import yaml  # late, so that a missing PyYAML is one message

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run this from a checkout of the project") from error
