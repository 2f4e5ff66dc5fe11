"""Learning rates and optimizer settings of a resumed run: the checkpoint's, or the option file's."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from dp_basicsr.options.schema import Train

import numpy as np

# Keys of an optimizer's groups that are not options, change at every step, or only choose torch's implementation.
_NOT_OPTIONS = {"params", "lr", "fused", "foreach", "capturable", "differentiable"}

# Attributes that say where BasicSR's CosineAnnealingRestartLR and torch's OneCycleLR end, with what belongs to them.
_ENDS = {"periods": ("restart_weights", "cumulative_period"), "total_steps": ("_schedule_phases",)}


def resume_training(model: Any, state: dict[str, Any], train: Train, use_options: bool) -> str | None:
    """Restore a training state in a model that was built from options.

    With ``use_options`` (``resume_schedule: options``) the learning rates and optimizer settings are those of the
    options, and the rate is that of a run with them from the start; otherwise the state's, which is changed, are kept.
    Returns a message that names the values in which the state and the options differ, or None.
    """
    changed = list(dict.fromkeys(_differences(model, state)))
    note = ""
    if use_options:
        for optimizer, saved in zip(model.optimizers, state["optimizers"], strict=False):
            for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=False):
                theirs |= {key: ours[key] for key in (*_settings(optimizer), "lr", "initial_lr") if key in ours}
        state["schedulers"] = [deepcopy(scheduler.state_dict()) for scheduler in model.schedulers]
    else:
        schedulers = zip(model.schedulers, state["schedulers"], strict=False)
        for (scheduler, saved), (end, more) in itertools.product(schedulers, _ENDS.items()):
            # The rate is undefined behind it, so a run that was lengthened takes the options' values.
            if hasattr(scheduler, end) and np.sum(saved[end]) < train.total_iter:
                saved |= {key: getattr(scheduler, key) for key in (end, *more)}
                note = f"; the checkpoint's {end} end before train:total_iter, so {end} are the option file's"
    model.resume_training(state)
    for optimizer in model.optimizers:
        optimizer._opt_called = True  # before the checkpoint; torch warns of a scheduler's step before an optimizer's
    if use_options:
        # Replayed, because the rate at an iteration follows from all steps before it.
        for iteration in range(1, state["iter"] + 1):
            model.update_learning_rate(iteration, warmup_iter=train.warmup_iter)
    if not changed:
        return None
    used, other = ("option file", "state") if use_options else ("checkpoint", "options")
    return (
        f"The checkpoint and the option file differ, and the {used}'s values are used: {', '.join(changed)}{note}; "
        f"the other way is path:resume_schedule={other}"
    )


def _settings(optimizer: Any) -> set[str]:
    """Return the keys of an optimizer's groups that are settings; other packages keep counters among them."""
    if type(optimizer).__module__.startswith("torch."):
        return set(optimizer.param_groups[0]) - {"params"}
    return {*inspect.signature(type(optimizer)).parameters, "initial_lr"}


def _differences(model: Any, state: dict[str, Any]) -> Iterator[str]:
    """Name the settings in which a state and a model's optimizers and schedulers differ, with both values."""
    values: list[tuple[str, Any, Any]] = []  # name, saved, ours
    # Some schedulers move the momentum with the rate, so it is no setting.
    cycles = any(getattr(scheduler, "cycle_momentum", False) for scheduler in model.schedulers)
    cycled = {"betas", "momentum"} if cycles else set()
    names = {id(value): name.replace("optimizer", "optim") for name, value in vars(model).items()}
    for optimizer, saved in zip(model.optimizers, state["optimizers"], strict=False):
        name = names.get(id(optimizer), "optimizer")
        for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=False):
            for key in [key for key in ours if key in theirs and key in _settings(optimizer) - _NOT_OPTIONS - cycled]:
                # BasicSR's schedulers keep the option file's rate there.
                values.append((f"{name}:{'lr' if key == 'initial_lr' else key}", theirs[key], ours[key]))
    for scheduler, saved in zip(model.schedulers, state["schedulers"], strict=False):
        for key in inspect.signature(type(scheduler)).parameters:
            if key in saved and key != "last_epoch":
                values.append((f"scheduler:{key}", saved[key], getattr(scheduler, key)))
    for name, *pair in values:
        for index, value in enumerate(pair):
            if isinstance(value, Counter):  # BasicSR's milestones
                pair[index] = sorted(value.elements())
            elif isinstance(value, tuple):
                pair[index] = list(value)
        if pair[0] != pair[1]:
            texts = [textwrap.shorten(str(value), 60) for value in pair]
            yield f"{name} {texts[0]} (option file: {texts[1]})"
