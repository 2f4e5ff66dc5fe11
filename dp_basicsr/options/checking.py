"""Check all options before anything is written, and report every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

from dp_basicsr.compat import OPTIMIZERS
from dp_basicsr.errors import UserError
from dp_basicsr.options.problems import Path, Problem, choose, joined, nearest, report
from dp_basicsr.options.reading import Options, shown
from dp_basicsr.options.rules import View, find_conflicts, find_missing
from dp_basicsr.options.signatures import (
    TypedEntry,
    loss_term,
    members_of,
    model_of,
    network_term,
    takes_more,
    typed_entries,
)
from dp_basicsr.utils.option_schema import (
    DATASETS,
    FOREIGN,
    Dataset,
    OptionFile,
    Section,
    add_all_defaults,
    add_defaults,
    section_in,
)

from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from pydantic import ValidationError

# BasicSR's models, which read the same keys as ours.
RELATED = ("SRModel", "SRGANModel", "ESRGANModel")

# Keys of BasicSR's PerceptualLoss that DPLoss lacks -> their replacement.
STOCK_KEYS = {
    "layer_weights": "vgg_layer_weights with the same layers (left out: the paper's conv5_4)",
    "perceptual_weight": "loss_weight",
    "style_weight": "none, because DPLoss has no style loss: remove it",
}

# pydantic's description of a type -> ours.
WORDS = (
    ("Input should be ", ""),
    ("a valid dictionary", "a section of keys"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid boolean", "true or false"),
    ("a valid string", "text"),
    ("a valid list", "a list"),
    ("a valid tuple", "a list"),
    ("an object", "a section of keys"),
    ("an instance of Mapping", "a section of keys"),
    ("an instance of Sequence", "a list"),
    ("Value error, ", ""),
    ("List should have ", ""),
    ("Dictionary should have ", ""),
    (" after validation", ""),
    ("Keys should be strings", "text as key"),
    ("greater than or equal to", "a number >="),
    ("less than or equal to", "a number <="),
    ("greater than", "a number >"),
    ("less than", "a number <"),
)


def check_options(
    opt: Options, file: str, entries: Sequence[str], is_train: bool, may_miss_data: bool = False
) -> list[str]:
    """Check all options of a run, as read and overridden, before they are completed.

    Args:
        opt: Options; they are not changed.
        file: Option file, for messages.
        entries: Overrides that have been applied, for messages.
        is_train: True for train.py; test.py needs fewer keys.
        may_miss_data: Return a message about missing files, instead of raising, if nothing else is wrong.

    Returns:
        The message about missing files and folders, or None; always None without ``may_miss_data``.

    Raises:
        UserError: All problems in one message.
    """
    problems = find_problems(opt, is_train, {entry.partition("=")[0] for entry in entries})
    if problems and not (may_miss_data and all(one.missing for one in problems)):
        raise UserError(report(file, problems, entries))
    return [report(file, problems, entries)] if problems else []


def find_problems(opt: Options, is_train: bool, overridden: Collection[str] = ()) -> list[Problem]:
    """Find all problems; ``overridden`` lists the keys set on the command line, as ``a:b:c``."""
    completed = deepcopy(opt)
    add_all_defaults(completed)
    view = View(completed)
    problems = [*_environment(), *_validate(OptionFile, opt, (), _is_open(opt)), *_model_type(opt)]
    for name, kind in typed_entries().items():
        path = tuple(name.split(":"))
        entry = view.at(*path)
        if name == "val:metrics":
            for metric, value in entry.items() if isinstance(entry, dict) else ():
                problems += _check_entry(kind, value, (*path, metric))
        elif entry is not None and not (kind.what == "optimizer" and _has_own_optimizers(opt, entry)):
            problems += _check_entry(kind, entry, path)
        if name == "train:perceptual_opt":
            problems += _check_terms(entry, path)
    datasets = opt.get("datasets")
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        problems += _check_dataset(name, dataset)
    view.wrong = {one.path for one in problems}
    problems += find_conflicts(view, is_train, overridden)
    problems += find_missing(view, is_train)
    return _unique(problems)


def _environment() -> Iterator[Problem]:
    """Refuse environment variables that would make BasicSR's own torch.load run code from a file."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() in ("1", "y", "yes", "true"):
        yield Problem((), f"expected {name} to be unset in the environment: with it a file of weights can run code")


def _is_open(opt: Options) -> bool:
    """Whether the model is from another package and may therefore read keys of its own."""
    name = opt.get("model_type")
    models = members_of(MODEL_REGISTRY)
    if not isinstance(name, str) or name not in models:
        return False
    ours = models[name].__module__.startswith("dp_basicsr.")
    return not ours and name not in RELATED


def _has_own_optimizers(opt: Options, entry: Any) -> bool:
    """Whether another package's model creates an optimizer that torch does not have."""
    if not _is_open(opt) or not isinstance(entry, dict) or entry.get("type") in OPTIMIZERS:
        return False
    model: Any = members_of(MODEL_REGISTRY)[opt["model_type"]]
    return getattr(model, "get_optimizer", None) is not BaseModel.get_optimizer


def _model_type(opt: Options) -> Iterator[Problem]:
    name = opt.get("model_type")
    models = members_of(MODEL_REGISTRY)
    if isinstance(name, str) and name not in models:
        yield Problem(("model_type",), f"expected a model, got {shown(name)}{choose(name, models)}")


def _check_entry(kind: TypedEntry, entry: Any, path: Path) -> list[Problem]:
    """Check a mapping with a ``type`` against the signature of that class, and add its defaults."""
    if not isinstance(entry, dict):
        return []  # already reported by OptionFile
    name = entry.get("type")
    if not isinstance(name, str):
        text = "missing" if "type" not in entry else f"got {shown(name)}"
        return [Problem((*path, "type"), f"expected the type of the {kind.what}, {text}{choose('', kind.classes)}")]
    if name not in kind.classes:
        return [Problem((*path, "type"), f"expected a {kind.what}, got {shown(name)}{choose(name, kind.classes)}")]
    member = kind.classes[name]
    is_open = takes_more(member) and kind.what != "metric"  # BasicSR's metrics ignore unknown keys
    model = model_of(member, kind.given, kind.more)
    problems = _validate(model, entry, path, is_open)
    add_defaults(model, entry)
    return problems


def _check_terms(entry: Any, path: Path) -> list[Problem]:
    """Check the further terms of a DPLoss: a registered loss by its ``type``, or a ``network``."""
    problems: list[Problem] = []
    if not isinstance(entry, dict) or entry.get("type") != "DPLoss":
        return problems
    terms = entry.get("extra_terms")
    for number, term in enumerate(terms if isinstance(terms, list) else ()):
        where = (*path, "extra_terms", number)
        if not isinstance(term, dict):
            continue  # already reported by the signature check
        if ("type" in term) == ("network" in term):
            got = "both" if "type" in term else "neither"
            problems.append(Problem(where, f"expected `type` (a loss) or `network` (of features), got {got}"))
        elif "type" in term:
            problems += _check_entry(loss_term(), dict(term), where)  # a copy, without the class's defaults
        else:
            problems += _validate(network_term(), term, where, is_open=False)
    return problems


def _check_dataset(name: Any, dataset: Any) -> list[Problem]:
    path: Path = ("datasets", name)
    if not isinstance(dataset, dict):
        return []
    problems = []
    if not isinstance(name, str) or name.split("_")[0] not in ("train", "val", "test"):
        problems.append(Problem(path, f"expected train, val, val_1, test_1 ..., got {shown(name, quotes=False)}"))
    kind = dataset.get("type")
    names = [*members_of(DATASET_REGISTRY), *DATASETS]
    if isinstance(kind, str) and kind not in names:
        problems.append(Problem((*path, "type"), f"expected a dataset, got {shown(kind)}{choose(kind, names)}"))
    model = DATASETS.get(kind) if isinstance(kind, str) else None
    return problems + _validate(model or Dataset, dataset, path, is_open=model is None)


def _validate(model: type[Section], value: Any, path: Path, is_open: bool) -> list[Problem]:
    """Translate pydantic's errors; an ``is_open`` section accepts keys unlike all known ones."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        found = [(_real_path(one["loc"], value, one["type"]), one) for one in error.errors(include_url=False)]
    else:
        return []
    problems = []
    for where, group in groupby(found, key=lambda pair: pair[0]):
        errors = [one for _, one in group]
        text = _text(model, where, errors, is_open)
        if text:
            problems.append(Problem((*path, *where), text))
    return problems


def _real_path(loc: Path, value: Any, kind: str) -> Path:
    """Return pydantic's location without union branches; for a missing key it ends with the key."""
    path: list[Any] = []
    for key in loc:
        in_list = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if in_list or (isinstance(value, dict) and key in value):
            value = value[key]
            path.append(key)
    return (*path, loc[-1]) if kind == "missing" else tuple(path)


def _text(model: type[Section], where: Path, errors: Sequence[Any], is_open: bool) -> str:
    """Return the message for a location; "" for keys of other programs."""
    kind = errors[0]["type"]
    if kind == "extra_forbidden":
        return _unknown(where[-1], _section_at(model, where[:-1]), is_open)
    if kind == "missing":
        field = _section_at(model, where[:-1]).model_fields[where[-1]]
        return f"expected {field.description or 'a value'}, got nothing: it is missing"
    expected = " or ".join(dict.fromkeys(_expected(one) for one in errors))
    value = errors[0]["input"]
    hint = ""
    if any(one["type"] == "literal_error" for one in errors) and isinstance(value, str):
        names = [name for one in errors for name in str(one.get("ctx", {}).get("expected", "")).split("'")[1::2]]
        close = nearest(value, names)
        hint = f"; did you mean {close}?" if close else ""
    if expected == "text" and type(value) in (int, float):
        hint = "; put it into quotes"
    return f"expected {expected}, got {shown(value)}{hint}"


def _expected(error: Mapping[str, Any]) -> str:
    text = str(error["msg"])
    for theirs, ours in WORDS:
        text = text.replace(theirs, ours)
    return re.sub(r" or instance of \w+", "", text)


def _section_at(model: type[Section], where: Path) -> type[Section]:
    """Return the model of a subsection."""
    for key in where:
        model = section_in(model.model_fields[key].annotation) or model
    return model


def _unknown(key: Any, section: type[Section], is_open: bool) -> str:
    is_path, known = section.__name__ == "Paths", section.model_fields
    if isinstance(key, str) and key.startswith(FOREIGN) and not is_path:
        return ""
    if key in STOCK_KEYS and section.__name__ == "DPLoss":
        return f"expected {STOCK_KEYS[key]}, got a key of PerceptualLoss"
    if is_open and not is_path and not nearest(key, known, cutoff=0.8):
        return ""
    return f"expected a known key, got one that no code reads{choose(key, known)}"


def _unique(problems: Sequence[Problem]) -> list[Problem]:
    """Keep one problem per location, in the order of their first keys."""
    return list({joined(one.path): one for one in reversed(problems)}.values())[::-1]
