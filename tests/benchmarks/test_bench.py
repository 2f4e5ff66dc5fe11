"""`make bench` runs and prints what it writes; timings are not asserted."""

from __future__ import annotations

import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, step
from benchmarks.__main__ import PARTS, main
from benchmarks.measure import compare, in_turns, seconds_in_a_row
from benchmarks.operations import counted, passes
from benchmarks.step import BASICSR, VARIANTS, model_of, step_of
from tests.support.processes import CONTEXT, ForkedSubprocess


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """The rows of each Markdown table, by its title."""
    tables: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if title := re.fullmatch(r"\*\*(.+)\*\*", line):
            rows = tables.setdefault(title[1], [])
        elif line.startswith("|") and "---" not in line:
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def test_every_part_runs_and_table_and_json_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Candidates and commands are forked from a process that has imported torch.
    monkeypatch.setattr(step.multiprocessing, "get_context", lambda method: CONTEXT)
    monkeypatch.setattr(measure, "subprocess", ForkedSubprocess())
    assert main(["--quick", "--rounds", "1", "--batch", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "bench.md").read_text() == printed.removesuffix("\n")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"]["torch"] in printed.splitlines()[0]
    shown = tables_of(printed)
    assert list(shown) == [table["title"] for table in content["tables"]]
    assert len(shown) >= len(PARTS)
    compared = 0
    for table in content["tables"]:
        header, *rows = shown[table["title"]]
        assert header == table["header"]
        assert rows == table["rows"]
        for row in rows:
            figures = table["figures"].get(row[0])
            if isinstance(figures, dict) and "ratio" in figures:
                compared += 1
                assert float(row[1].removesuffix(" s")) == pytest.approx(
                    statistics.median(figures["seconds"]), rel=1e-3
                )
                ratios = [float(number) for number in re.findall(r"[\d.e+-]+", row[2])]
                assert ratios == pytest.approx([figures[f"ratio{end}"] for end in ("", "_min", "_max")], rel=1e-2)
    assert compared >= 8
    assert "30 sub-images. Differences from BasicSR: HR at most 0, LR 1" in printed
    assert "30 sub-images; samples bit-identical" in printed
    assert "DIFFER" not in printed


@pytest.mark.parametrize("name", [BASICSR, *VARIANTS])
def test_every_candidate_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: None)  # a compiler takes minutes
    model = model_of(name, True)
    before = [parameter.detach().clone() for parameter in model.net_g.parameters()]
    step_of(model, 2)()
    assert not any(map(torch.equal, before, model.net_g.parameters()))


def test_ratios_are_taken_round_by_round() -> None:
    """A slow round hits both, and must not widen the spread."""
    table = compare("title", {"first": [1.0, 10.0], "second": [0.5, 5.0]}, {"second": 12.0})
    assert table.rows == [("first", "5.5 s", "1 (1 to 1)", ""), ("second", "2.75 s", "0.5 (0.5 to 0.5)", "12 MB")]


def test_each_turn_starts_with_a_different_candidate() -> None:
    order: list[str] = []
    works: dict[str, Any] = {name: lambda name=name: order.append(name) for name in "ab"}
    assert {name: len(times) for name, times in in_turns(works, 2).items()} == {"a": 2, "b": 2}
    assert order[-4:] == ["a", "b", "b", "a"]


def test_the_first_step_of_a_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = [0.0], iter([9.0, 1.0, 3.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert seconds_in_a_row(lambda: clock.append(clock.pop() + next(seconds)), 2) == 2.0


def test_operations_are_those_that_a_convolution_has() -> None:
    """2 x 9 x channels in x channels out for every pixel, and as many for each gradient."""
    conv = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    expected = 2 * 9 * 4 * 8 * 16 * 16 / 1e9
    assert passes(conv, (1, 4, 16, 16)) == pytest.approx(
        {"forward": expected, "to the image": expected, "to the weights": expected}
    )
    image = torch.rand(1, 4, 16, 16)
    assert counted(lambda: conv(image).sum().backward()).flop / 1e9 == pytest.approx(2 * expected)


def test_a_mistyped_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stepp"])
    assert "expected parts from step" in capsys.readouterr().err
