"""The benchmark of the data path runs, and compares the same data; what it measures is nobody's assertion."""

from __future__ import annotations

from scripts.bench.data import measure
from scripts.bench.measure import Settings


def test_it_compares_the_same_pixels() -> None:
    preparation, loader = measure(Settings(quick=True, rounds=1))
    assert "30 sub-images. Against BasicSR's pixels, HR differ by at most 0, LR by 1" in preparation.note
    assert "30 sub-images; samples equal bit for bit" in loader.note
    assert [len(table.rows) for table in (preparation, loader)] == [3, 4]
