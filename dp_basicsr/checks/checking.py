"""Check all options before anything is written, and report every problem at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path as FilePath
from typing import Any

from dp_basicsr.checks.notes import find_notes
from dp_basicsr.checks.problems import Path, Problem, hint, nearest, path_text, placed, registered_hint, report
from dp_basicsr.checks.rules import find_conflicts, find_missing
from dp_basicsr.checks.signatures import TERM, NetworkTerm, TypedEntry, members_of, model_of, takes_more, typed_entries
from dp_basicsr.checks.view import View
from dp_basicsr.errors import UserError
from dp_basicsr.metrics.scores import function_of
from dp_basicsr.options.reading import USED_OPTIONS, Options, quote
from dp_basicsr.options.schema import DATASETS, Dataset, OptionFile, dataset_model, section_in
from dp_basicsr.options.section import FOREIGN, Section
from dp_basicsr.utils.optimizers import optimizers

from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from pydantic import ValidationError

# BasicSR's models, which read the same keys as ours.
RELATED = ("SRModel", "SRGANModel", "ESRGANModel")

# Keys of BasicSR's PerceptualLoss that DPLoss lacks -> their replacement.
STOCK_KEYS = {
    "layer_weights": "vgg_layer_weights with the same layers (left out: the paper's conv5_4)",
    "perceptual_weight": "loss_weight",
    "style_weight": "none, because DPLoss has no style loss: remove it",
}

# What to write in place of 0, -1 or nothing, by which others switch these off.
SWITCHED_OFF = {
    ("logger", "print_freq"): "a number above total_iter logs no losses",
    ("logger", "save_checkpoint_freq"): "a number above total_iter saves at the end alone",
    ("logger", "keep_last"): "left out, all checkpoints are kept",
    ("val", "val_freq"): "a number above total_iter validates at the end alone, no val: at all never",
}

# Keys of other trainers' files -> what is here in their place.
ELSEWHERE = (
    (r"\.", "keys are separated by colons: train:optim_g:lr"),
    (r"\[\d+\]$", "give all of a list: key=[1, 2]"),
    ("._opt$", "DPLoss takes any further loss as one of its extra_terms, and --import a model with losses of its own"),
    (r"^tile(_size|_pad)?$|chop", "val: tile, a number of LQ pixels, cuts the images of validation and test"),
    ("^(auto_?)?resume(_from)?$", "--auto_resume on the command line continues a run, or path: resume_state"),
    ("^(gt_sizes|mini_batch_sizes)$", "a later start with --auto_resume may have another gt_size"),
    ("accum", "train: grad_accumulation is the number of parts to split a mini-batch into"),
    ("epoch", "lengths are counted in iterations: total_iter"),
    (r"^_*(base|defaults|include|extends)_*$", "a file has no base: copy it, or change keys with --force_yml"),
)

JOIN = "put links to the files of several folders into one"

# Whether a class may read a key; see `_reader_of`.
Reader = Callable[[str, bool], bool]

_tried: dict[tuple[Any, str], str | None] = {}  # class and settings -> why it does not work here

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
    # Before `greater than`, which it contains; the words are replaced in this order.
    ("greater than or equal to", "a number >="),
    ("less than or equal to", "a number <="),
    ("greater than", "a number >"),
    ("less than", "a number <"),
)


@dataclass(frozen=True)
class Checked:
    """Options that can run."""

    options: OptionFile
    missing: tuple[str, ...]  # the message about missing files and folders, if any
    notes: tuple[str, ...]  # what the options ask for and the run will not do


def check_options(
    opt: Options, file: str, entries: Sequence[str], is_train: bool, may_miss_data: bool = False
) -> Checked:
    """Check all options of a run, as read and overridden by ``entries``; all problems are one UserError.

    ``file`` is the option file, for messages. With ``may_miss_data``, a message about missing files is returned, if
    nothing else is wrong.
    """
    # The run that left them may have been shortened on its command line.
    shortened = {"train:total_iter"} if FilePath(file).name == USED_OPTIONS else set()
    problems = find_problems(opt, is_train, shortened | {entry.partition("=")[0] for entry in entries})
    message = report(file, problems, entries)
    # `--check` tries a step on random images instead, so that a run can be planned before its data exists.
    if problems and not (may_miss_data and all(problem.missing for problem in problems)):
        raise UserError(message)
    options = OptionFile.of(opt)
    notes = placed(file, find_notes(options, is_train), entries)
    return Checked(options, (message,) if problems else (), tuple(notes))


def find_problems(opt: Options, is_train: bool, overridden: Collection[str] = ()) -> list[Problem]:
    """Find all problems; ``overridden`` lists the keys set on the command line, as ``a:b:c``."""
    view = View(opt)
    # Another package's model may read keys of its own. By the module, because it may have any name.
    is_open = view.model is not None and opt["model_type"] not in RELATED
    is_open = is_open and not view.model.__module__.startswith("dp_basicsr.")
    # So may one that is not imported yet, whose name is a problem of its own.
    is_named = view.model is None and isinstance(opt.get("model_type"), str)
    reader = _reader_of(view.model) if is_open or is_named else None
    # It may also build its optimizer itself, whose keys are then not a signature's.
    builds_optimizers = is_open and getattr(view.model, "get_optimizer", None) is not BaseModel.get_optimizer
    problems = [*_validate(OptionFile, opt, (), reader), *_names(opt)]
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    # BasicSR's own torch.load would then run code from a file.
    if os.environ.get(name, "0").lower() in ("1", "y", "yes", "true"):
        text = f"expected {name} to be unset in the environment: with it a file of weights can run code"
        problems.append(Problem((), text))
    # Only what the file names: importing the package of further optimizers takes seconds.
    wanted = {name for key in ("optim_g", "optim_d") if isinstance(name := view.raw("train", key, "type"), str)}
    for name, kind in typed_entries(wanted).items():
        path = tuple(name.split(":"))
        entry = view.raw(*path)
        entries = {path: entry}
        if name == "val:metrics":
            # `metrics` is a mapping of entries, each of which has a type.
            entries = {(*path, metric): value for metric, value in entry.items()} if isinstance(entry, dict) else {}
        for key, value in entries.items():
            # Sections that are none have been reported already.
            if not isinstance(value, dict):
                continue
            if kind.what == "optimizer" and builds_optimizers and str(value.get("type")) not in optimizers():
                continue
            problems += _check_entry(kind, value, key, view)
        if name == "train:perceptual_opt":
            problems += _check_terms(entry, path)
    # From here on a wrong value is hidden: rules that read it would only report it again.
    view.wrong = {problem.path for problem in problems}
    problems += find_conflicts(view, is_train, overridden)
    problems += find_missing(view, is_train)
    for number, problem in enumerate(problems):
        if problem.path in SWITCHED_OFF:
            problems[number] = replace(problem, text=f"{problem.text}; {SWITCHED_OFF[problem.path]}")
    # One problem per location: reversed twice, so that of two problems at one place the first remains.
    return list({path_text(problem.path): problem for problem in reversed(problems)}.values())[::-1]


def _names(opt: Options) -> Iterator[Problem]:
    """Find models, sets and phases that do not exist."""
    name, models = opt.get("model_type"), members_of(MODEL_REGISTRY)
    if isinstance(name, str) and name not in models:
        yield Problem(("model_type",), f"expected a model, got {quote(name)}{registered_hint(name, models)}")
    datasets, kinds = opt.get("datasets"), [*members_of(DATASET_REGISTRY), *DATASETS]
    for key, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if key != "train" and str(key).split("_")[0] not in ("val", "test"):
            text = f"expected train, val, val_1, test_1 ..., got {quote(key, quotes=False)}"
            text += f"; a run trains on one set: {JOIN}" if str(key).startswith("train") else ""
            yield Problem(("datasets", key), text)
        kind = dataset.get("type") if isinstance(dataset, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            text = f"expected a dataset, got {quote(kind)}{registered_hint(kind, kinds)}"
            yield Problem(("datasets", key, "type"), text)


def _check_entry(kind: TypedEntry, entry: dict[str, Any], path: Path, view: View | None = None) -> list[Problem]:
    """Check a mapping with a ``type`` against the signature of that class, which the view then knows."""
    name = entry.get("type")
    if not isinstance(name, str):
        text = "missing" if "type" not in entry else f"got {quote(name)}"
        return [Problem((*path, "type"), f"expected the type of the {kind.what}, {text}{hint('', kind.classes)}")]
    member = kind.classes.get(name)
    # Built on demand, because the libraries' metrics are not registered.
    if kind.what == "metric" and "/" in name:
        try:
            member = function_of(name)
        except UserError as error:
            return [Problem((*path, "type"), str(error))]
    if member is None:
        article = "an" if kind.what[0] in "aeiou" else "a"
        # torch's schedulers have no registry.
        known = (hint if kind.what == "scheduler" else registered_hint)(name, kind.classes)
        text = f"expected {article} {kind.what}, got {quote(name)}{known}"
        # Networks that spandrel knows are trained from a file of weights.
        text += "; FromFile trains the network of a file" if path == ("network_g",) else ""
        return [Problem((*path, "type"), text)]
    model = model_of(member, kind.given, kind.more)
    if view is not None:
        view.signatures[path] = model
    # Metrics and many optimizers take any key, and ignore it.
    is_open = takes_more(member) and kind.what not in ("metric", "optimizer")
    problems = _validate(model, entry, path, _reader_of(member) if is_open else None)
    if kind.why_not and not problems and not member.__module__.startswith("basicsr."):
        # A signature does not tell whether a class works here, so it is tried on small weights.
        settings = {key: value for key, value in entry.items() if key != "type"}
        # G and D have the same one as a rule, and a trial takes longer than all other checks.
        key = (member, repr(settings))
        if key not in _tried:
            _tried[key] = kind.why_not(member, settings)
        if reason := _tried[key]:
            text = f"expected {kind.expected}, got {name}, of which a trial fails: {reason}"
            problems.append(Problem((*path, "type"), text))
    return problems


def _check_terms(entry: Any, path: Path) -> list[Problem]:
    """Check the further terms of a DPLoss: a registered loss by its ``type``, or a ``network``."""
    problems: list[Problem] = []
    if not isinstance(entry, dict) or entry.get("type") != "DPLoss":
        return problems
    terms, loss = entry.get("extra_terms"), TypedEntry("loss", members_of(LOSS_REGISTRY), more=TERM)
    for number, term in enumerate(terms if isinstance(terms, list) else ()):
        term_path = (*path, "extra_terms", number)
        if not isinstance(term, dict):
            continue  # already reported by the signature check
        if ("type" in term) == ("network" in term):
            got = "both" if "type" in term else "neither"
            problems.append(Problem(term_path, f"expected `type` (a loss) or `network` (of features), got {got}"))
        elif "type" in term:
            # No view, so that the rules do not see defaults of its class in the term.
            problems += _check_entry(loss, dict(term), term_path)
        else:
            problems += _validate(NetworkTerm, term, term_path)
    return problems


def _reader_of(member: Any) -> Reader:
    """Return whether a class may read a key, given also whether the key is unlike all known ones.

    It is looked for in the code of the class, its bases, and the modules beside theirs, to which it may hand its
    arguments. That is all of BasicSR's; other packages may read keys elsewhere, too.
    """
    names = {base.__module__ for base in getattr(member, "__mro__", ())}
    packages = {name.rpartition(".")[0] for name in names} - {""}
    modules = [value for name, value in sys.modules.items() if name in names or name.rpartition(".")[0] in packages]
    files = {str(getattr(module, "__file__", "")) for module in modules}
    is_code = [file for file in sorted(files) if file.endswith(".py") and os.path.isfile(file)]
    code = "".join(FilePath(file).read_text(encoding="utf-8", errors="replace") for file in is_code)
    is_basicsr_s = getattr(member, "__module__", "").startswith("basicsr.")
    return lambda key, is_other: (is_other and not is_basicsr_s) or bool(re.search(rf"\b{re.escape(key)}\b", code))


def _validate(model: type[Section], value: Any, path: Path, reader: Reader | None = None) -> list[Problem]:
    """Translate pydantic's errors; unknown keys that a ``reader`` may read are accepted."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        errors = [(_real_path(item["loc"], value, item["type"]), item) for item in error.errors(include_url=False)]
    else:
        return []
    problems = []
    # A union yields an error for each of its branches: they become one message.
    for inner, group in groupby(errors, key=lambda pair: pair[0]):
        section, node, reads = model, value, reader
        # The model of a subsection; of a set, the one of its type.
        for key in inner[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
            if section is OptionFile and inner[0] == "datasets" and key != "datasets":
                section = dataset_model(node)
            elif key in section.model_fields:
                section = section_in(section.model_fields[key].annotation) or section
        # A set of a type that has no model here may have any keys, too, and one of a known type no others.
        if issubclass(section, Dataset):
            kind = str(value["datasets"][inner[1]].get("type"))
            reads = _reader_of(members_of(DATASET_REGISTRY).get(kind)) if section is Dataset else None
        if text := _text(section, inner, [item for _, item in group], reads):
            problems.append(Problem((*path, *inner), text))
    return problems


def _real_path(loc: Path, value: Any, kind: str) -> Path:
    """Return pydantic's location without union branches; for a missing key it ends with the key."""
    path: list[Any] = []
    for key in loc:
        # Names of union branches are in no file, so a key that the value lacks is one of them.
        in_list = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if in_list or (isinstance(value, dict) and key in value):
            value = value[key]
            path.append(key)
    return (*path, loc[-1]) if kind == "missing" else tuple(path)


def _text(section: type[Section], path: Path, errors: Sequence[Any], reads: Reader | None) -> str:
    """Return the message for a location; "" for keys of other programs, or that a class may read."""
    kind, key = errors[0]["type"], path[-1] if path else ""
    if kind == "extra_forbidden":
        is_path, known = section.__name__ == "Paths", section.model_fields
        # BasicSR makes a folder of any other key of `path`, also of another program's.
        is_folder = is_path and not re.search("pretrain_network|strict_load|param_key|resume", str(key))
        # A key much like a known one is a typing error even where any key is allowed, unless the class names it.
        is_other = not nearest(key, known, cutoff=0.8)
        # Nothing is asked for by ~, with which the command line leaves a key out, but a class gets its arguments.
        is_nothing = errors[0]["input"] is None and is_other and section.__module__ == OptionFile.__module__
        is_read = reads is not None and reads(str(key), is_other)
        if not is_folder and (str(key).startswith(FOREIGN) or is_nothing or is_read):
            return ""
        if key in STOCK_KEYS and section.__name__ == "DPLoss":
            return f"expected {STOCK_KEYS[key]}, got a key of PerceptualLoss"
        if key == "experiments_root" and is_path:
            return "expected none, got a folder for the runs: start in it, or make experiments/ a link to it"
        advice = next((f"; {text}" for sign, text in ELSEWHERE if re.search(sign, str(key).lower())), hint(key, known))
        return f"expected a known key, got one that no code reads{advice}"
    if kind == "missing":
        # A section without a name (`~:`) is not found by its path.
        field = section.model_fields.get(str(key))
        return f"expected {(field and field.description) or 'a value'}, got nothing: it is missing"
    messages = [str(error["msg"]) for error in errors]
    for theirs, ours in WORDS:
        messages = [message.replace(theirs, ours) for message in messages]
    expected = " or ".join(dict.fromkeys(re.sub(r" or instance of \w+", "", message) for message in messages))
    value, advice = errors[0]["input"], ""
    if any(error["type"] == "literal_error" for error in errors) and isinstance(value, str):
        # pydantic names the choices only in a text, in quotes.
        choices = [str(error.get("ctx", {}).get("expected", "")) for error in errors]
        close = nearest(value, [name for choice in choices for name in choice.split("'")[1::2]])
        advice = f"; did you mean {close}?" if close else ""
    if expected == "text" and not isinstance(value, (list, dict, type(None))):
        advice = "; put it into quotes, on a command line into two kinds: 'key=\"value\"'"
    elif type(value) is int and value > 0 and key in ("scale", "upscale"):
        more = "RRDBNet, EDSR and SwinIR" if value == 1 else "SRVGGNetCompact"
        advice = f"; CompactDP, with upscale: {value}, and {more} take it"
    elif value == "None":
        advice = "; nothing is ~ or null in YAML"
    elif "a list" in expected and isinstance(value, str | int | float) and (expected == "a list" or "," in str(value)):
        advice = "; in brackets: [" + quote(value, quotes=False).strip("()[]'") + "]"
    elif isinstance(value, list) and str(key).startswith("dataroot"):
        advice = f"; {JOIN}"
    return f"expected {expected}, got {quote(value)}{advice}"
