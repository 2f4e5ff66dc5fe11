"""scripts/bench_step.py runs and prints a line for each step; what it measures is nobody's assertion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts import bench_step
from tests.conftest import model_options


def test_it_times_each_model_in_turns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def small(**changes: Any) -> dict[str, Any]:
        return model_options("ESRGANDPModel", Path(), **changes)

    monkeypatch.setattr(bench_step, "options", small)
    monkeypatch.setattr(bench_step, "basicsr_model", lambda: bench_step.build_model(small()))
    assert bench_step.main(["--batch", "2", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("2 pairs, 1 rounds")
    assert len(lines) == 4
    assert lines[1].endswith("1.00 (1.00 to 1.00)")
