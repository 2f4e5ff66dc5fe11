"""The soak benchmark: it watches a real run, and its slopes match the samples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import measure, soak
from benchmarks.soak import Sample, prepare, slopes, watch
from tests.support.processes import ForkedSubprocess


def test_slopes_are_per_1000_iterations() -> None:
    """10 MB and one descriptor more every 100 iterations, 20 ms an iteration; the second sample found no new line."""
    looks = [Sample(2.0 * number, 100 * number, 500 + 10 * number, 40 + number, 8) for number in range(10)]
    looks.insert(1, Sample(0.5, 0, 500, 40, 8))
    found = slopes(looks)
    assert [pytest.approx(slope, abs=1e-9) for _, _, slope in found.values()] == [100, 10, 0, 0]
    assert found["iteration"] == pytest.approx((20, 20, 0))
    assert found["memory"][:2] == (510, 580)


def test_a_run_is_watched_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 10)
    # A line an iteration, so that a busy machine writes a second one in the time, too.
    monkeypatch.setattr(soak, "LINE", 1)
    for module in (measure, soak):
        monkeypatch.setattr(module, "subprocess", ForkedSubprocess())
    samples = watch(tmp_path, "raw", prepare(tmp_path, "raw"), 0.06)
    assert samples[-1].iteration > samples[0].iteration >= 10
    assert all(sample.threads >= 3 and sample.descriptors > 10 and sample.memory > 100 for sample in samples)


def test_the_output_of_a_failed_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "print('no such folder'); raise SystemExit(2)"]
    monkeypatch.setattr(soak, "train_command", lambda *overrides: failing)
    with pytest.raises(RuntimeError, match="ended with 2 after 0 samples:\nno such folder"):
        watch(tmp_path, "raw", [], 0.01)
