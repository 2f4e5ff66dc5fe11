"""The limit of open files in a run."""

from __future__ import annotations

import resource

from dp_basicsr.runs.limits import raise_open_file_limit

import pytest


@pytest.mark.parametrize(("hard", "expected"), [(4096, 4096), (2**20, 65536), (resource.RLIM_INFINITY, 65536)])
def test_the_soft_limit_is_raised(hard: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#973, zju3dv/NeuralRecon#91: a few dozen workers reach the usual 1024."""
    limits = {resource.RLIMIT_NOFILE: (1024, hard)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    raise_open_file_limit()
    assert limits[resource.RLIMIT_NOFILE] == (expected, hard)


@pytest.mark.parametrize("soft", [100_000, resource.RLIM_INFINITY])
def test_a_higher_limit_stays(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (soft, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    raise_open_file_limit()
    assert limits[resource.RLIMIT_NOFILE] == (soft, resource.RLIM_INFINITY)
