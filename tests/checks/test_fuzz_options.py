"""Broken option files and overrides: each is either valid or refused with one readable message.

``make fuzz`` tries more of them.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.options import read_options
from dp_basicsr.options.schema import OptionFile, Train, Val

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.fuzz import generated, judge, sections
from tests.support.options import parse_options

OPTIONS = Path(__file__).resolve().parents[2] / "options"
FILES = sorted(OPTIONS.glob("*.yml"))
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in FILES}

# Values that have broken programs before, and any others.
SCALARS = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 4, 128, 1e-4, 5e3, -0.5, 1e400, -1e400, float("nan"), 10**400]),
    st.sampled_from(["", ".", "..", "a/b", "train", "auto", "0", "1e", "x" * 5000, "\0", "\n", "\u202e", "😀"]),
    st.sampled_from(["RRDBNetDP", "DPLoss", "PairedDataset", "Adam", "MultiStepLR", "lmdb", "~/x", "=", "<<", b"b"]),
    st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
)  # fmt: skip
SOME_KEYS = st.one_of(st.text(max_size=6), st.integers())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SOME_KEYS, inner, max_size=3), max_leaves=5
)
KNOWN_KEYS = [*OptionFile.model_fields, *Train.model_fields, *Val.model_fields]
KEYS = st.one_of(st.sampled_from([*KNOWN_KEYS, "type", "io_backend", "x_a", "<<"]), st.text(max_size=8),
                 st.integers(-1, 3), st.none(), st.booleans())  # fmt: skip


@pytest.fixture(autouse=True)
def everything_is_there() -> None:
    """Files named in the shipped options, so that valid options can be completed."""
    for opt in map(read_options, FILES):
        for dataset in opt["datasets"].values():
            for root in ("dataroot_gt", "dataroot_lq"):
                Path(dataset[root]).mkdir(parents=True, exist_ok=True)
        if network := opt["path"].get("pretrain_network_g") or opt["network_g"].get("path"):
            Path(network).parent.mkdir(parents=True, exist_ok=True)
            Path(network).touch()
    Path("fuzzed.yml").touch()


def judge_run(text: str | bytes, entries: list[str], is_train: bool) -> None:
    """Check an option file with overrides: a UserError or none, and nothing else is written."""
    before = sorted(Path().rglob("*"))
    Path("fuzzed.yml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        parse_options(["-opt", "fuzzed.yml", *(["--force_yml", *entries] if entries else [])], is_train)
    except UserError as error:
        judge(str(error))
    assert sorted(Path().rglob("*")) == before


def mutate(data: st.DataObject, opt: dict[str, Any]) -> None:
    """Delete, rename, retype, replace or add something, somewhere; make lists that belong together uneven."""
    section = data.draw(st.sampled_from(sections(opt)))
    key = data.draw(st.sampled_from(sorted(section, key=repr) if isinstance(section, dict) else range(len(section))))
    action = data.draw(st.sampled_from(["delete", "rename", "value", "as text", "wrap", "add", "misspell", "uneven"]))
    if action == "delete":
        del section[key]
    elif action == "value":
        section[key] = data.draw(VALUES)
    elif action == "as text":
        section[key] = str(section[key])
    elif action == "wrap":
        section[key] = [section[key]]
    elif action == "uneven" and isinstance(section, list):
        section[key:key] = section * data.draw(st.integers(1, 3))
    elif isinstance(section, dict):
        if action == "add":
            section[data.draw(KEYS)] = data.draw(VALUES)
        elif action in ("rename", "uneven"):
            section[data.draw(KEYS)] = section.pop(key)
        else:
            section[f"{str(key)[:3]}{data.draw(st.sampled_from('ae_1'))}{str(key)[3:]}"] = section.pop(key)


@generated(50)
@given(data=st.data())
def test_changed_values(data: st.DataObject) -> None:
    opt = deepcopy(read_options(data.draw(st.sampled_from(FILES))))
    for _ in range(data.draw(st.integers(1, 4))):
        assume(any(sections(opt)))
        if all(sections(opt)):
            mutate(data, opt)
    try:
        text = yaml.safe_dump(opt, sort_keys=False)
    except ValueError:  # a number that Python does not write out
        assume(False)
    judge_run(text, [], data.draw(st.booleans()))


def test_a_set_without_a_name() -> None:
    """Found by drawing longer."""
    judge_run("name: small\nscale: 4\ndatasets: {~: {type: PairedImageDataset, dataroot_lq: x}}", [], is_train=True)


ODD = [": ", "- ", "[", "{", "}", "&a ", "*a", "!!int ", "!!python/", "'", "<<: *val ", "<<: [*val, *val] ", "图", "? ",
       "| ", "%", "@", "`"]  # fmt: skip


@generated(50)
@given(data=st.data())
def test_changed_text(data: st.DataObject) -> None:
    """Deleted, duplicated and moved lines and inserted characters, as after editing mistakes or bad merges."""
    lines = TEXTS[data.draw(st.sampled_from(sorted(TEXTS)))].splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 5))):
        index, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        action = data.draw(st.sampled_from(["delete", "double", "move", "indent", "insert"]))
        line = lines.pop(index)
        if action == "double":
            lines[index:index] = [line, line]
        elif action == "move":
            lines.insert(other, line)
        elif action == "indent":
            lines.insert(index, data.draw(st.sampled_from(["", " ", "  ", "\t"])) + line.lstrip())
        elif action == "insert":
            column = data.draw(st.integers(0, len(line)))
            odd = data.draw(st.one_of(st.sampled_from(ODD), st.text(max_size=3)))
            lines.insert(index, line[:column] + odd + line[column:])
        if not lines:
            break
    judge_run("".join(lines), [], data.draw(st.booleans()))


@generated(50)
@given(data=st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    content = bytearray(TEXTS[data.draw(st.sampled_from(sorted(TEXTS)))].encode())
    for _ in range(data.draw(st.integers(1, 6))):
        index = data.draw(st.integers(0, len(content)))
        content[index : index + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=6))
    judge_run(bytes(content), [], is_train=True)


@generated(50)
@given(content=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_content(content: str | bytes) -> None:
    judge_run(content, [], is_train=True)


TOP = ["name", "scale", "num_gpu", "manual_seed", "train", "network_g", "path", "dist_params", "datasets:train", "new"]
DEEP = ["train:total_iter", "train:optim_g", "train:optim_g:lr", "train:scheduler:milestones", "val:metrics:psnr_y",
        "train:perceptual_opt:mu", "train:perceptual_opt:vgg_layer_weights", "datasets:val_1:io_backend", "val:tile",
        "datasets:train:gt_size", "datasets:new", "network_g:num_feat", "network_d:input_size", "val:metrics",
        "logger:wandb", "path:resume_state"]  # fmt: skip
PATHS = st.sampled_from([*TOP, *DEEP])
YAML_TEXT = st.one_of(
    st.sampled_from(["", "~", "[", "{a: 1", "&a [*a]", "*b", "!!int x", "1e-4", "2020-13-45", "? a", "[" * 1000]),
    st.sampled_from(["{type: RRDBNet}", "[1, 2, 1]", "{1: 2}", "{[1]: 2}", ".inf", "<<", "{<<: 1}"]),
    st.sampled_from(["=", "0x" + "f" * 5000, "9" * 5000]),
    st.sampled_from(["!!python/object/apply:os.system [touch ran]", "__import__('os').system('touch ran')"]),
    VALUES.map(repr), st.text(max_size=12), st.text(alphabet=string.printable, max_size=20),
)  # fmt: skip


ENTRIES = st.one_of(st.tuples(PATHS, YAML_TEXT).map("=".join), st.text(max_size=15))


@generated(50)
@given(entries=st.lists(ENTRIES, min_size=1, max_size=3), is_train=st.booleans())
def test_any_override(entries: list[str], is_train: bool) -> None:
    # argparse would take the first for an option, and refuses what is empty.
    assume(not any(entry.startswith("-") or not entry for entry in entries))
    judge_run(TEXTS["train_esrgan_dp.yml"], entries, is_train)


@pytest.mark.parametrize("wrong", [lambda: judge("short"), lambda: judge("a" * 1000), lambda: judge("\x1b[1m" * 9)])
def test_the_judge_can_fail(wrong: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        wrong()
