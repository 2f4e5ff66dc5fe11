"""The limit of open files in a run."""

from __future__ import annotations

from resource import RLIM_INFINITY, RLIMIT_NOFILE

from dp_basicsr.runs.limits import raise_open_file_limit

import pytest


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 4096, 4096), (1024, 2**20, 65536), (1024, RLIM_INFINITY, 65536), (100_000, RLIM_INFINITY, 100_000),
     (RLIM_INFINITY, RLIM_INFINITY, RLIM_INFINITY)],
)  # fmt: skip
def test_the_soft_limit_is_raised(soft: int, hard: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#973, zju3dv/NeuralRecon#91: a few dozen workers reach the usual 1024. A higher limit stays."""
    limits = {RLIMIT_NOFILE: (soft, hard)}
    monkeypatch.setattr("resource.getrlimit", limits.__getitem__)
    monkeypatch.setattr("resource.setrlimit", limits.__setitem__)
    raise_open_file_limit()
    assert limits[RLIMIT_NOFILE] == (expected, hard)
