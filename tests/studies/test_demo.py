"""The demo's data and commands."""

from __future__ import annotations

from dp_basicsr.studies import demo

import pytest


def test_commands_are_found_from_any_folder(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run("scripts/make_lr.py", "--help")
    out = capfd.readouterr().out
    assert "usage: python " in out
    assert "scripts/make_lr.py --help" in out.splitlines()[1]
