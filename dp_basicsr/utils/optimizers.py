"""Optimizers and schedulers by name: torch's, and those of ``pytorch_optimizer`` if it is installed.

Whether a run can use one is not listed but tried: on two small weights, with the options' own values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dp_basicsr.errors import first_line, import_optional
from dp_basicsr.utils.safe_load import load

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

EXTRA = "pytorch_optimizer"
# The base class, its old name, and the one that BasicSR has too.
_NOT_NAMED = ("LRScheduler", "_LRScheduler", "MultiStepLR")


def optimizers(wanted: Collection[Any] = ()) -> dict[str, type[Optimizer]]:
    """Return the optimizers by name; those of the extra, whose import takes seconds, if torch lacks a wanted one."""
    kinds = _subclasses(torch.optim, Optimizer, "Optimizer")
    if not set(wanted) <= kinds.keys() and importlib.util.find_spec(EXTRA):
        kinds = _subclasses(import_optional(EXTRA), Optimizer) | kinds
    # Those of other packages are known once they are imported, by --import.
    return kinds if set(wanted) <= kinds.keys() else {kind.__name__: kind for kind in _below(Optimizer)} | kinds


def _below(kind: type[Optimizer]) -> Iterator[type[Optimizer]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def make_optimizer(kind: type[Optimizer], weights: Any, settings: Mapping[str, Any]) -> Optimizer:
    """Return an optimizer that can step: those of the package schedulefree begin in their mode of validation."""
    # torch refuses a whole number among them, such as GANs' [0, 0.99].
    betas = {key: tuple(map(float, value)) for key, value in settings.items() if key == "betas"}
    optimizer: Any = kind(weights, **{**settings, **betas})
    if switching([optimizer]):
        optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def schedulers() -> dict[str, Any]:
    """Return torch's schedulers by name."""
    return _subclasses(lr_scheduler, lr_scheduler.LRScheduler, *_NOT_NAMED)


def _subclasses(module: Any, base: type, *without: str) -> dict[str, Any]:
    members = {name: kind for name, kind in vars(module).items() if inspect.isclass(kind) and issubclass(kind, base)}
    return {name: kind for name, kind in members.items() if name not in without and not name.startswith("_")}


def why_not_optimizer(kind: type[Optimizer], settings: Mapping[str, Any]) -> str | None:
    """Return why a run cannot use an optimizer: it must take dense gradients without a closure, and resume exactly."""

    def step(stepped: list[nn.Parameter], optimizer: Any) -> None:
        for weight in stepped:
            weight.grad = (weight.detach() * 3).cos()
        # Some draw random numbers.
        torch.manual_seed(0)
        optimizer.step()

    def resumes_exactly() -> bool:
        # One continues, the other starts from its state, and both take the same third step.
        weights, others = (
            [nn.Parameter(torch.linspace(-1, 1, 108).reshape(4, 3, 3, 3)), nn.Parameter(torch.linspace(-1, 1, 4))]
            for _ in range(2)
        )
        first, resumed = make_optimizer(kind, weights, settings), make_optimizer(kind, others, settings)
        step(weights, first)
        step(weights, first)
        _reload(first, resumed)
        for weight, other in zip(weights, others, strict=True):
            other.data.copy_(weight.data)
        step(weights, first)
        step(others, resumed)
        return all(torch.equal(weight, other) for weight, other in zip(weights, others, strict=True))

    return _why_not(resumes_exactly)


def why_not_scheduler(kind: Any, settings: Mapping[str, Any]) -> str | None:
    """Return why a run cannot use a scheduler: it must step by iteration, and resume exactly."""

    def resumes_exactly() -> bool:
        first, resumed = (kind(torch.optim.Adam([torch.zeros(1)], lr=0.1), **settings) for _ in range(2))
        first.step()
        _reload(first.optimizer, resumed.optimizer)
        _reload(first, resumed)
        first.step(), resumed.step()
        return bool(first.get_last_lr() == resumed.get_last_lr())

    return _why_not(resumes_exactly)


def _reload(part: Any, other: Any) -> None:
    """Give ``other`` the state of ``part`` by way of a file's content."""
    content = io.BytesIO()
    torch.save(part.state_dict(), content)
    content.seek(0)
    other.load_state_dict(load(content, "the state"))


def _why_not(resumes_exactly: Callable[[], bool]) -> str | None:
    # Classes of others may print, warn and draw random numbers when they are tried.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return None if resumes_exactly() else "it does not resume exactly from its state"
        except Exception as error:
            # Whatever they raise on values that they may not take.
            return f"{type(error).__name__}: {first_line(error)}"


def switching(given: Iterable[Optimizer]) -> list[Any]:
    """Return the schedule-free optimizers, which train one set of weights and mean another."""
    return [optimizer for optimizer in given if callable(getattr(optimizer, "eval", None))]


def weights_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """Return all weights of an optimizer."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


@contextlib.contextmanager
def averaged_weights(given: Iterable[Optimizer]) -> Iterator[None]:
    """Let networks have the weights that schedule-free optimizers mean, to validate or save them."""
    before = [(optimizer, [weight.detach().clone() for weight in weights_of(optimizer)])
              for optimizer in switching(given)]  # fmt: skip
    for optimizer, _ in before:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer, weights in before:
            optimizer.train()
            # Its arithmetic rounds; the run must go on with the very weights that it would have had.
            for weight, exact in zip(weights_of(optimizer), weights, strict=True):
                weight.data.copy_(exact)


class ScheduleFree:
    """The weights that schedule-free optimizers train, in a checkpoint whose networks have the others."""

    def __init__(self, given: Sequence[Optimizer]) -> None:
        self.given = given

    def state_dict(self) -> list[list[torch.Tensor]]:
        """Return the weights of each of these optimizers."""
        return [[weight.detach().cpu() for weight in weights_of(optimizer)] for optimizer in switching(self.given)]

    def load_state_dict(self, state: list[list[torch.Tensor]]) -> None:
        """Put the weights back."""
        for optimizer, weights in zip(switching(self.given), state, strict=True):
            for weight, saved in zip(weights_of(optimizer), weights, strict=True):
                weight.data.copy_(saved)
