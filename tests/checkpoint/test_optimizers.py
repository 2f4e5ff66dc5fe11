"""Any optimizer and scheduler: exact resume, a warm-up before it, and refusals with the reason."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.checks.checking import find_problems
from dp_basicsr.models.base import freeze
from dp_basicsr.options import override, read_options
from dp_basicsr.utils.optimizers import averaged_weights, optimizers, schedulers

import pytest
import torch

from tests.support.options import SMALL_PSNR
from tests.support.programs import difference

LAST = Path("experiments/small/training_states/4.state")


class TheirSGD(torch.optim.SGD):
    """As another package's: known once it is imported, and made in its mode of validation, as those of schedulefree."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.eval()

    def train(self, mode: bool = True) -> None:
        self.param_groups[0]["train_mode"] = mode

    def eval(self) -> None:
        self.train(False)

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"]
        return super().step(closure)


def run(*entries: str) -> tuple[Any, Any, str]:
    """Train to the end; return the last state and network, and the log of this start."""
    Path("small.yml").write_text(SMALL_PSNR)
    train.main(["-opt", "small.yml", "--auto_resume", "--force_yml", *entries])
    state = torch.load(LAST, weights_only=False)
    network = torch.load("experiments/small/models/net_g_4.pth", weights_only=True)
    return state, network, max(Path("experiments/small").glob("*.log")).read_text()


def resumes_exactly(*entries: str) -> str:
    """Train to the end, then again from the checkpoint at half: everything is the same, bit for bit."""
    state, network, log = run(*entries)
    for suffix in ("state", "sha256"):
        LAST.with_suffix(f".{suffix}").unlink()
    resumed, again, second = run(*entries)
    assert "iter: 2." in second
    assert "differ" not in second
    parts = ("optimizers", "schedulers", "schedule_free")
    assert difference(*({part: of.get(part) for part in parts} for of in (state, resumed))) is None
    assert difference(network, again) is None
    shutil.rmtree("experiments")
    return log


@pytest.fixture(autouse=True)
def logs_of_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100))
    monkeypatch.setattr("dp_basicsr.runs.log.get_time_str", lambda: f"{next(times):03}")


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        # Factored states, weights that are trained beside those that are saved, counters of other packages.
        ("Adafactor", "{type: CosineAnnealingLR, T_max: 4, eta_min: 1e-7}"),
        ("ScheduleFreeAdamW", "{type: ExponentialLR, gamma: 0.5}"),
        ("TheirSGD", "{type: StepLR, step_size: 2}"),
        ("Lion", "{type: CyclicLR, base_lr: 1e-5, max_lr: 1e-3, step_size_up: 2}"),
        ("NAdam", "{type: OneCycleLR, max_lr: 1e-3, total_steps: 5}"),
        ("SGD", "{type: PolynomialLR, total_iters: 4}"),
    ],
)
def test_an_optimizer_and_a_scheduler_resume_exactly(optimizer: str, scheduler: str, pairs: Path) -> None:
    if optimizer not in optimizers([optimizer]):
        pytest.importorskip("pytorch_optimizer")
    resumes_exactly(f"train:optim_g={{type: {optimizer}, lr: 1e-3}}", f"train:scheduler={scheduler}",
                    "train:warmup_iter=3")  # fmt: skip


def problems(*entries: str) -> str:
    Path("small.yml").write_text(SMALL_PSNR)
    opt = read_options("small.yml")
    override(opt, entries)
    found = find_problems(opt, is_train=True)
    return "\n".join(f"{':'.join(map(str, problem.path))}: {problem.text}" for problem in found if not problem.missing)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("optim_g={type: LBFGS}", "optim_g:type: expected an optimizer that .*LBFGS.* 'closure'"),
        ("optim_g={type: SparseAdam}", "optim_g:type: .* does not support dense gradients"),
        ("optim_g={type: Adafactor, lr: 1e-3, beta: 1}", "optim_g:beta: expected a known key"),
        ("optim_g={type: Adam, lr: 1e-3, betas: [2, 0.9]}", "optim_g:betas"),
        ("optim_g={type: Adan0, lr: 1e-3}", "optim_g:type: expected an optimizer, got 'Adan0'; did you mean Ada"),
        ("scheduler={type: ReduceLROnPlateau}", "scheduler:type: expected a scheduler that steps by iteration"),
        ("scheduler={type: TheirLR}", "scheduler:type: expected a scheduler, got 'TheirLR'; there are: [^(]+$"),
        ("scheduler={type: LambdaLR, lr_lambda: x}", "scheduler:type: .* a trial fails"),
        ("scheduler={type: CosineAnnealingLR, T_mx: 4}", "scheduler:T_mx: .*T_max"),
        ("scheduler={type: OneCycleLR, max_lr: 1e-3, total_steps: 3}", "total_steps: expected at least"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_the_reason(entry: str, message: str) -> None:
    assert re.search(message, problems(f"train:{entry}"))


def test_a_whole_number_among_the_betas_is_taken() -> None:
    """stylegan3#656: torch takes floats alone, and [0, 0.99] is what GANs train with."""
    for kind in ("Adam", "AdamW"):
        assert not problems(f"train:optim_g={{type: {kind}, lr: 1e-3, betas: [0, 0.99]}}")


@pytest.mark.parametrize("kind", sorted(optimizers()) + sorted(schedulers()))
def test_every_class_of_torch_trains_or_is_refused(kind: str) -> None:
    needed = {"CosineAnnealingLR": "T_max: 4", "CosineAnnealingWarmRestarts": "T_0: 2", "SWALR": "swa_lr: 1e-4",
              "CyclicLR": "base_lr: 1e-5, max_lr: 1e-3", "OneCycleLR": "max_lr: 1e-3, total_steps: 9",
              "StepLR": "step_size: 2", "ExponentialLR": "gamma: 0.5"}  # fmt: skip
    key = "optim_g" if kind in optimizers() else "scheduler"
    refused = {"LBFGS", "SparseAdam", "Muon", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler",
               "ReduceLROnPlateau"}  # fmt: skip
    found = problems(f"train:{key}={{type: {kind}, {needed.get(kind, '')}}}")
    assert bool(found) == (kind in refused), found


def test_saving_leaves_schedule_free_weights_as_they_are() -> None:
    kind = pytest.importorskip("pytorch_optimizer").ScheduleFreeAdamW
    weight = torch.nn.Parameter(torch.randn(50))
    optimizer = kind([weight], lr=1e-2)
    for _ in range(3):
        weight.grad = weight.detach().sin()
        optimizer.step()
    before = weight.detach().clone()
    with averaged_weights([optimizer]):
        assert not torch.equal(before, weight)
    assert torch.equal(before, weight)


def test_a_frozen_batch_norm_keeps_its_statistics_and_uses_them() -> None:
    """keras#7085; one whose weights train follows the data."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))
    freeze(net, ["0.*", "1.*"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = torch.rand(2, 3, 4, 4)
    for _ in range(2):
        net.eval()
        expected = net[:2](image)
        assert torch.equal(net.train()[:2](image), expected)
    net(image)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}


def test_frozen_weights_stay_and_other_patterns_are_refused_at_a_resume(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = resumes_exactly("train:freeze=['conv_first*', 'body.0.rdb1.*']")
    assert re.search(r"[\d,]+ of [\d,]+ weights of RRDBNetDP train; the others are frozen", log)
    network = run("train:freeze=[conv_first*]")[1]["params"]
    half = torch.load("experiments/small/models/net_g_2.pth", weights_only=True)["params"]
    same = {name for name in network if torch.equal(network[name], half[name])}
    assert same == {"conv_first.weight", "conv_first.bias"}
    refused = {
        "[conv_last*]": "expected ['conv_first*'], as in the state of iteration 4, got ['conv_last*']",
        "[conv_firs]": "'conv_firs' matches none: conv_first, body",
        "['*']": "got all weights",
    }
    for entry, message in refused.items():
        with pytest.raises(SystemExit):
            run(f"train:freeze={entry}")
        assert message in capsys.readouterr().err
