"""`make gpu-report`: refused without a GPU, and rehearsed on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_report, measure
from tests.support.processes import ForkedSubprocess


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_refused(refused: Callable[..., str]) -> None:
    assert "error: expected a CUDA GPU, got none" in refused(gpu_report.main, [])
    assert not Path("results").exists()


TESTS = """
import pytest

@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("number", [0, 1])
def test_of_a_device(device, number):
    if device == "cuda":
        pytest.skip()

def test_that_fails():
    raise ValueError
"""


def test_the_report_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests, bit-exact resume and a run; the parts of the benchmark are rehearsed by test_bench.py."""
    (tmp_path / "test_few.py").write_text(TESTS)
    monkeypatch.setattr(gpu_report, "PARTS", ())
    monkeypatch.setattr(gpu_report, "REHEARSED_TESTS", str(tmp_path / "test_few.py"))
    for module in (gpu_report, measure):
        monkeypatch.setattr(module, "subprocess", ForkedSubprocess())
    assert gpu_report.main(["--rehearse", "--out", str(tmp_path)]) == 0
    suite, resume, run = json.loads((tmp_path / "report.json").read_text())["tables"]
    assert suite["rows"] == [["cpu", "2", "0", "0", "0"], ["cuda", "0", "0", "0", "2"], ["neither", "0", "1", "0", "0"]]
    (failed,) = suite["figures"]["failed"]
    assert failed.endswith("test_few::test_that_fails")
    assert resume["figures"] == {"net_g": {"same_bits": True}, "net_d": {"same_bits": True}}
    assert run["figures"]["seconds"] > run["figures"]["data_seconds"] > 0
    assert "the figures are meaningless" in (tmp_path / "report.md").read_text()
