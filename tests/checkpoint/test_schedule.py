"""Sources of a resumed run's networks, learning rates, optimizer settings and option file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dp_basicsr import train
from dp_basicsr.utils.optimizers import ELEMENTWISE

import pytest

from tests.support.options import SMALL_PSNR
from tests.support.programs import same_weights

SMALLEST = ["-opt", "small.yml", "--force_yml", "train:total_iter=6", "train:scheduler:milestones=[5]"]

Run = Callable[..., str]


@pytest.fixture
def run(pairs: Path) -> Run:
    """Train a very small run of six iterations; return what this start has logged."""
    Path("small.yml").write_text(SMALL_PSNR)

    def start(*entries: str, arguments: tuple[str, ...] = ("--auto_resume",), name: str = "small") -> str:
        train.main([*SMALLEST, f"name={name}", *entries, *arguments])
        return max(Path("experiments", name).glob("*.log")).read_text()

    return start


@pytest.fixture(autouse=True)
def logs_of_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each start a log of its own, though several happen within a second."""
    times = iter(range(100))
    monkeypatch.setattr("dp_basicsr.runs.log.get_time_str", lambda: f"{next(times):03}")


def rates(log: str) -> dict[int, str]:
    """Learning rate of each iteration, as logged."""
    return {int(number): lr for number, lr in re.findall(r"iter:\s+(\d+), lr:\((.*?),\)", log)}


def latest(name: str) -> Path:
    return Path("experiments", name, "models/net_g_latest.pth")


def only_warning(log: str) -> str:
    (line,) = [line for line in log.splitlines() if "WARNING" in line]
    return line


@pytest.mark.parametrize("total", [6, 4])
def test_a_run_that_is_complete_says_so(total: int, run: Run) -> None:
    run()
    expected = rf"Nothing is left to train: iteration 6 of train: total_iter \({total}\) is saved already"
    assert re.search(expected, run(f"train:total_iter={total}"))
    assert same_weights(latest("small"), Path("experiments/small/models/net_g_6.pth"))


def test_a_named_state_loads_the_networks_beside_it(run: Run) -> None:
    """Even if this run's folder has networks of the same iteration from another run."""
    run(name="first")
    run("manual_seed=5", name="small")
    Path("experiments/first").rename("experiments/first_archived")
    run("path={resume_state: experiments/first_archived/training_states/4.state}", arguments=())
    assert same_weights(Path("experiments/first_archived/models/net_g_latest.pth"), latest("small"))


def test_a_state_without_its_networks_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    Path("alone").mkdir()
    Path("experiments/small/training_states/4.state").rename("alone/4.state")
    with pytest.raises(SystemExit):
        run("path={resume_state: alone/4.state}", arguments=())
    assert f"no such file: {Path('models/net_g_4.pth').absolute()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ("train:optim_g:lr=1e-3", "train:optim_g:lr=5e-4", "optim_g:lr 0.001 (option file: 0.0005)"),
        ("train:optim_g:betas=[0.9, 0.99]", "train:optim_g:betas=[0.5, 0.9]",
         "optim_g:betas [0.9, 0.99] (option file: [0.5, 0.9])"),
        ("train:optim_g={type: Adam, lr: 1e-3}", "train:optim_g={type: AdamW, lr: 1e-3, weight_decay: 0}",
         "optim_g:decoupled_weight_decay False (option file: True)"),
        ("train:scheduler:milestones=[3]", "train:scheduler:milestones=[4]",
         "scheduler:milestones [3] (option file: [4])"),
        ("train:scheduler:gamma=0.5", "train:scheduler:gamma=0.1", "scheduler:gamma 0.5 (option file: 0.1)"),
        ("train:scheduler={type: CosineAnnealingRestartLR, periods: [6], eta_min: 1e-7}",
         "train:scheduler={type: CosineAnnealingRestartLR, periods: [8], eta_min: 1e-6}",
         "scheduler:periods [6] (option file: [8]), scheduler:eta_min 1e-07 (option file: 1e-06)"),
    ],
)  # fmt: skip
def test_the_state_s_values_are_kept_and_named_or_the_option_file_s_used(
    first: str, then: str, said: str, run: Run
) -> None:
    """With `options`, iterations have the rates of a run with these options from its start."""
    kept, used = rates(run(first, arguments=())), rates(run(then, arguments=(), name="used"))
    back_to_4()
    log = run(then)
    assert said in only_warning(log)
    assert "the checkpoint's values are used" in only_warning(log)
    assert rates(log) == {number: kept[number] for number in (5, 6)}
    back_to_4()
    log = run(then, "path:resume_schedule=options")
    assert said in only_warning(log)
    assert "the option file's values are used" in only_warning(log)
    assert rates(log) == {number: used[number] for number in (5, 6)}


def back_to_4() -> None:
    """Delete the last checkpoint."""
    for suffix in ("state", "sha256"):
        Path(f"experiments/small/training_states/6.{suffix}").unlink()


@pytest.mark.parametrize("schedule", ["state", "options"])
def test_a_run_can_be_lengthened(schedule: str, run: Run) -> None:
    """Beyond the end of its original periods."""
    cosine = "train:scheduler={type: CosineAnnealingRestartLR, periods: [%s], restart_weights: [%s]}"
    first = run("train:total_iter=4", cosine % ("4", "1"), arguments=())
    used = rates(run("train:total_iter=8", cosine % ("4, 4", "1, 0.5"), arguments=(), name="used"))
    log = run("train:total_iter=8", cosine % ("4, 4", "1, 0.5"), f"path:resume_schedule={schedule}")
    assert rates(first) | rates(log) == used
    assert ("so periods are the option file's" in only_warning(log)) == (schedule == "state")


def test_warm_up_and_another_scheduler_come_from_the_option_file(run: Run) -> None:
    """The rate of MultiStepLR depends on all steps before; the other kind is refused where the state's is asked for."""
    other = ["train:scheduler={type: CosineAnnealingRestartLR, periods: [6]}", "train:warmup_iter=3"]
    run(*other, arguments=())
    back_to_4()
    then = ["train:warmup_iter=5", "train:scheduler:milestones=[5]", "path:resume_schedule=options"]
    used = rates(run(*then, name="used", arguments=()))
    assert rates(run(*then)) == {number: used[number] for number in (5, 6)}
    back_to_4()
    with pytest.raises(SystemExit):
        run("train:scheduler:milestones=[5]")


def test_resume_with_the_same_options_is_exact_and_says_nothing(run: Run) -> None:
    run(arguments=())
    whole = latest("small").rename("whole.pth")
    for schedule in ("state", "options"):
        back_to_4()
        assert "WARNING" not in run(f"path:resume_schedule={schedule}")
        assert same_weights(whole, latest("small"))


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_resume_is_exact_with_any_optimizer(optimizer: str, run: Run) -> None:
    entry = f"train:optim_g={{type: {optimizer}, lr: 1e-3}}"
    run(entry, arguments=())
    whole = latest("small").rename("whole.pth")
    back_to_4()
    run(entry)
    assert same_weights(whole, latest("small"))


@pytest.mark.parametrize("arguments", [("--auto_resume",), ()])
def test_the_option_file_kept_with_a_run_can_start_it_again(arguments: tuple[str, ...], run: Run) -> None:
    run(arguments=())
    kept = Path("experiments/small/small.yml")
    text = kept.read_text()
    back_to_4()
    log = run("-opt", str(kept), arguments=arguments)
    assert ("Resuming training from epoch" in log) == bool(arguments)
    assert len(list(Path("experiments").glob("small_archived_*"))) == (0 if arguments else 1)
    assert kept.read_text().count("# CMD:") == 1
    assert kept.read_text().partition("\n\n")[2] == text.partition("\n\n")[2]


def test_a_copy_that_cannot_be_read_moves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(arguments=())
    kept = Path("experiments/small/small.yml")
    build = train.main.__globals__["read_given_options"]

    def read_and_lose(args: object) -> object:
        opt = build(args)
        kept.unlink()
        return opt

    monkeypatch.setitem(train.main.__globals__, "read_given_options", read_and_lose)
    with pytest.raises(SystemExit):
        run("-opt", str(kept), arguments=())
    assert latest("small").exists()
    assert [path.name for path in Path("experiments").iterdir() if path.is_dir()] == ["small"]
