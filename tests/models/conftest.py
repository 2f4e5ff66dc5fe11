"""Shared fixtures of the models' tests."""

from __future__ import annotations

import dp_basicsr  # noqa: F401 (makes basicsr importable)

import pytest
from basicsr.utils import get_root_logger


@pytest.fixture(autouse=True)
def seen_by_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see BasicSR's log, which does not reach the root logger once it is set up."""
    monkeypatch.setattr(get_root_logger(), "propagate", True)
