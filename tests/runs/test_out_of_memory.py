"""A step that does not fit into memory: one message with options that help, and intact checkpoints."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr import train
from dp_basicsr.checkpoint.manifest import check_manifest
from dp_basicsr.errors import UserError
from dp_basicsr.models import SRGANDPModel
from dp_basicsr.options.run import RunOptions
from dp_basicsr.runs.limits import out_of_memory_is_user_error

import pytest
import torch

from tests.support.options import parse_options, write_small_gan

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation ...")


@pytest.fixture
def options(pairs: Path) -> None:
    logger = {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}
    write_small_gan(logger=logger)


@pytest.mark.usefixtures("options")
def test_a_run_stops_with_the_options_that_help_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = SRGANDPModel.optimize_parameters

    def greedy(model: SRGANDPModel, iteration: int) -> None:
        if iteration == 4:
            raise ERROR
        step(model, iteration)

    monkeypatch.setattr(SRGANDPModel, "optimize_parameters", greedy)
    with pytest.raises(SystemExit) as stopped:
        train.main(["-opt", "small.yml"])
    monkeypatch.setattr(SRGANDPModel, "optimize_parameters", step)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    expected = (
        "Tried to allocate 2.00 GiB", "checkpointing: true (now false)", "amp: bf16 (now none)",
        "grad_accumulation (now 1)", "batch_size_per_gpu (now 2)", "gt_size (now 32)", "--auto_resume",
    )  # fmt: skip
    assert [words for words in expected if words not in line] == []
    run = Path("experiments/small")
    assert sorted(path.name for path in (run / "training_states").iterdir()) == ["2.sha256", "2.state"]
    check_manifest(run / "training_states/2.sha256")
    train.main(["-opt", "small.yml", "--auto_resume"])
    assert (run / "training_states/4.state").is_file()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ERROR, "does not fit into memory"),
        (MemoryError(), "does not fit into memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory"),
        (RuntimeError("shapes differ"), "^shapes differ$"),
        (UserError("validation of a: out of memory"), "^validation of a: out of memory$"),
    ],
)
@pytest.mark.usefixtures("options")
def test_gpu_and_cpu_memory_are_handled_alike_and_other_errors_pass(error: Exception, expected: str) -> None:
    run = RunOptions.of(parse_options(["-opt", "small.yml"]))
    kind = UserError if "memory" in expected else type(error)
    with pytest.raises(kind, match=expected), out_of_memory_is_user_error(run):
        raise error
