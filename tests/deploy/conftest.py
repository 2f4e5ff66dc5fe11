"""Small generators with random weights, and files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.networks import make_network


@pytest.fixture
def network_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes BasicSR's kind of file of a small network (see ``make_network``)."""

    def write(name: str = "net_g_latest.pth", **size: str | int) -> Path:
        path = tmp_path / name
        torch.save({"params": make_network(**size).state_dict()}, path)  # type: ignore[arg-type]
        return path

    return write
