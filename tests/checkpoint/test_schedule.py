"""Learning rates and optimizer settings of a resumed run, and the sources of its networks and option file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.checkpoint.schedule import resume_training
from dp_basicsr.compat import complete_basicsr
from dp_basicsr.options.schema import Train

import pytest
import torch
from basicsr.models.base_model import BaseModel

from tests.support.options import SMALL_PSNR
from tests.support.programs import same_weights

ADAM = {"type": "Adam", "lr": 1e-3}
STEPS = {"type": "MultiStepLR", "milestones": [3], "gamma": 0.5}


def build(optim: dict[str, Any] = ADAM, scheduler: dict[str, Any] = STEPS) -> Any:
    """A model of one weight, as the programs build it."""
    complete_basicsr()
    model = BaseModel({"num_gpu": 0, "is_train": True, "train": {"scheduler": dict(scheduler)}})
    settings = {name: value for name, value in optim.items() if name != "type"}
    model.optimizer_g = model.get_optimizer(optim["type"], [torch.nn.Parameter(torch.zeros(1))], **settings)
    model.optimizers = [model.optimizer_g]
    model.setup_schedulers()
    return model


def rates(model: Any, first: int, last: int, warmup: int = -1) -> dict[int, float]:
    """Train; return the learning rate of each iteration."""
    found = {}
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration, warmup_iter=warmup)
        (found[iteration],) = model.get_current_learning_rate()
        model.optimizer_g.step()
    return found


def state_of(model: Any, iteration: int) -> dict[str, Any]:
    parts = {"optimizers": model.optimizers, "schedulers": model.schedulers}
    return {"iter": iteration, **{name: [deepcopy(part.state_dict()) for part in of] for name, of in parts.items()}}


def resume(state: dict[str, Any], model: Any, use_options: bool, total: int = 6, warmup: int = -1) -> str | None:
    options = Train.model_construct(total_iter=total, warmup_iter=warmup)
    return resume_training(model, deepcopy(state), options, use_options)


COSINE = {"type": "CosineAnnealingRestartLR", "periods": [6], "eta_min": 1e-7}


@pytest.mark.parametrize(
    "scheduler", [STEPS, STEPS | {"milestones": [2, 5]}, COSINE, {"type": "ExponentialLR", "gamma": 0.9}]
)
def test_a_warm_up_changes_no_rate_that_follows(scheduler: dict[str, Any]) -> None:
    """Also across a milestone, and in a run that resumes in the middle of it."""
    expected = {number: rate for number, rate in rates(build(scheduler=scheduler), 1, 7).items() if number >= 4}
    model, resumed = build(scheduler=scheduler), build(scheduler=scheduler)
    warm = rates(model, 1, 2, warmup=4)
    assert warm[1] < warm[2] < ADAM["lr"]
    resume(state_of(model, 2), resumed, use_options=False, warmup=4)
    for run in (model, resumed):
        assert {number: rate for number, rate in rates(run, 3, 7, warmup=4).items() if number >= 4} == expected


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"optim": ADAM | {"lr": 5e-4}}, "optim_g:lr 0.001 (option file: 0.0005)"),
        ({"optim": ADAM | {"betas": [0.9, 0.99]}}, {"optim": ADAM | {"betas": [0.5, 0.9]}},
         "optim_g:betas [0.9, 0.99] (option file: [0.5, 0.9])"),
        ({}, {"optim": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0}},
         "optim_g:decoupled_weight_decay False (option file: True)"),
        ({}, {"scheduler": STEPS | {"milestones": [4]}}, "scheduler:milestones [3] (option file: [4])"),
        ({}, {"scheduler": STEPS | {"gamma": 0.1}}, "scheduler:gamma 0.5 (option file: 0.1)"),
        ({"scheduler": COSINE}, {"scheduler": COSINE | {"periods": [8], "eta_min": 1e-6}},
         "scheduler:periods [6] (option file: [8]), scheduler:eta_min 1e-07 (option file: 1e-06)"),
    ],
)  # fmt: skip
def test_the_state_s_values_are_kept_and_named_or_the_option_file_s_used(
    before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    """With ``options``, iterations have the rates of a run with these options from its start."""
    first = build(**before)
    rates(first, 1, 4)
    state = state_of(first, 4)
    for use_options, whole, whose in ((False, build(**before), "checkpoint"), (True, build(**now), "option file")):
        expected = rates(whole, 1, 6)
        resumed = build(**now)
        note = resume(state, resumed, use_options)
        assert said in str(note)
        assert f"the {whose}'s values are used" in str(note)
        assert rates(resumed, 5, 6) == {number: expected[number] for number in (5, 6)}


@pytest.mark.parametrize("use_options", [False, True])
@pytest.mark.parametrize(
    ("end", "short", "long"),
    [("periods", COSINE | {"periods": [4], "restart_weights": [1]},
      COSINE | {"periods": [4, 4], "restart_weights": [1, 0.5]}),
     ("total_steps", {"type": "OneCycleLR", "max_lr": 1e-3, "total_steps": 4},
      {"type": "OneCycleLR", "max_lr": 1e-3, "total_steps": 8})],
)  # fmt: skip
def test_a_run_can_be_lengthened(end: str, short: dict[str, Any], long: dict[str, Any], use_options: bool) -> None:
    """Beyond the end of its original schedule, where OneCycleLR raises (GrowSP#11)."""
    first, longer = build(scheduler=short), build(scheduler=long)
    rates(first, 1, 4)
    note = resume(state_of(first, 4), longer, use_options, total=8)
    assert (f"so {end} are the option file's" in str(note)) != use_options
    whole = rates(build(scheduler=long), 1, 8)
    assert rates(longer, 5, 8) == {number: whole[number] for number in (5, 6, 7, 8)}


@pytest.mark.parametrize("use_options", [False, True])
def test_a_run_that_resumes_after_one_iteration_is_not_warned_of(use_options: bool) -> None:
    """mmpretrain#464: stopped by its second batch, it was told to skip the first rate of its schedule."""
    first, resumed = build(), build()
    rates(first, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(state_of(first, 1), resumed, use_options)
        rates(resumed, 2, 3)


def test_a_warm_up_comes_from_the_option_file() -> None:
    """The rate of MultiStepLR depends on all steps before."""
    first = build(scheduler=COSINE)
    rates(first, 1, 4, warmup=3)
    scheduler = STEPS | {"milestones": [5]}
    resumed = build(scheduler=scheduler)
    resume(state_of(first, 4), resumed, use_options=True, warmup=5)
    expected = rates(build(scheduler=scheduler), 1, 6, warmup=5)
    assert rates(resumed, 5, 6, warmup=5) == {number: expected[number] for number in (5, 6)}


def test_a_warm_up_leaves_the_schedule_behind_it_as_it_is() -> None:
    """Schedulers that multiply the last rate must not multiply that of the warm-up."""
    model = build({"type": "SGD", "lr": 1.0}, {"type": "ExponentialLR", "gamma": 0.5})
    assert list(rates(model, 1, 6, warmup=4).values()) == [0.25, 0.25, 0.1875, 0.125, 0.0625, 0.03125]


Run = Callable[..., str]


@pytest.fixture
def run(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a very small run of six iterations; return what this start has logged."""
    Path("small.yml").write_text(SMALL_PSNR)
    times = iter(range(100))  # a log for each start, though several happen within a second
    monkeypatch.setattr("dp_basicsr.runs.log.get_time_str", lambda: f"{next(times):03}")
    options = ["--force_yml", "train:total_iter=6", "train:scheduler:milestones=[5]"]

    def start(
        *entries: str, arguments: tuple[str, ...] = ("--auto_resume",), name: str = "small", file: str = "small.yml"
    ) -> str:
        train.main(["-opt", file, *options, f"name={name}", *entries, *arguments])
        return max(Path("experiments", name).glob("*.log")).read_text()

    return start


def latest(name: str) -> Path:
    return Path("experiments", name, "models/net_g_latest.pth")


def back_to_4() -> None:
    """Delete the last checkpoint."""
    for suffix in ("state", "sha256"):
        Path(f"experiments/small/training_states/6.{suffix}").unlink()


def test_resume_with_the_same_options_is_exact_and_a_complete_run_says_so(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(arguments=())
    whole = latest("small").rename("whole.pth")
    for schedule in ("state", "options"):
        back_to_4()
        assert "WARNING" not in run(f"path:resume_schedule={schedule}")
        assert same_weights(whole, latest("small"))
    for total in (6, 4):
        text = f"Nothing is left to train: iteration 6 of train: total_iter ({total}) is saved already"
        assert text in run(f"train:total_iter={total}")
        assert same_weights(whole, latest("small"))
    capsys.readouterr()
    run("train:total_iter=4", arguments=("--check", "--auto_resume"))
    assert text in capsys.readouterr().out, "OneTrainer#132"
    back_to_4()
    with pytest.raises(SystemExit):
        run("train:scheduler={type: CosineAnnealingRestartLR, periods: [6]}")
    assert "another scheduler: path:resume_schedule=options" in capsys.readouterr().err


def test_an_average_begins_and_ends_when_a_run_resumes(run: Run) -> None:
    """naifu#5: EMA for a run that had none."""
    run("train:total_iter=4", arguments=())
    start = torch.load(latest("small"))["params"]
    run("train:total_iter=5", "train:ema_decay=0.9")
    now = torch.load(latest("small"))
    for name, value in now["params_ema"].items():
        torch.testing.assert_close(value, 0.9 * start[name] + 0.1 * now["params"][name])
    run("train:total_iter=6")
    assert torch.load(latest("small")).keys() == {"params", "options"}


def test_a_named_state_loads_the_networks_beside_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if this run's folder has networks of the same iteration from another run."""
    run(name="first")
    run("manual_seed=5", name="small")
    Path("experiments/first").rename("experiments/first_archived")
    run("path={resume_state: experiments/first_archived/training_states/4.state}", arguments=())
    assert same_weights(Path("experiments/first_archived/models/net_g_latest.pth"), latest("small"))
    Path("alone").mkdir()
    Path("experiments/first_archived/training_states/4.state").rename("alone/4.state")
    with pytest.raises(SystemExit):
        run("path={resume_state: alone/4.state}", arguments=())
    assert f"no such file: {Path('models/net_g_4.pth').absolute()}" in capsys.readouterr().err


def test_the_option_file_kept_with_a_run_can_start_it_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(arguments=())
    kept = Path("experiments/small/small.yml")
    text = kept.read_text()
    back_to_4()
    for arguments, archived in ((("--auto_resume",), 0), ((), 1)):
        log = run(arguments=arguments, file=str(kept))
        assert ("Resuming training from epoch" in log) != archived
        assert len(list(Path("experiments").glob("small_archived_*"))) == archived
        assert kept.read_text().count("# CMD:") == 1
        assert kept.read_text().partition("\n\n")[2] == text.partition("\n\n")[2]
    # A copy that can no longer be read moves nothing.
    before = sorted(Path("experiments").iterdir())
    build = train.main.__globals__["read_given_options"]
    monkeypatch.setitem(train.main.__globals__, "read_given_options", lambda args: (build(args), kept.unlink())[0])
    with pytest.raises(SystemExit):
        run(arguments=(), file=str(kept))
    assert sorted(Path("experiments").iterdir()) == before
