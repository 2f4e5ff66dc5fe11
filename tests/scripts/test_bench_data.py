"""The benchmark of the data path runs and compares the same data; timings are not asserted."""

from __future__ import annotations

from scripts.bench.data import measure
from scripts.bench.measure import Settings


def test_it_compares_the_same_pixels() -> None:
    preparation, loader = measure(Settings(quick=True, rounds=1))
    assert "30 sub-images. Differences from BasicSR: HR at most 0, LR 1" in preparation.note
    assert "30 sub-images; samples bit-identical" in loader.note
    assert [len(table.rows) for table in (preparation, loader)] == [3, 4]
