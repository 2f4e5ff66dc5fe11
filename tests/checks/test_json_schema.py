"""The editors' schema matches the checks, and docs/options.md has every key."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr.checks.json_schema import FILE, json_schema
from dp_basicsr.options import override, read_options
from dp_basicsr.options.schema import DATASETS, DistParams, IoBackend, Logger, OptionFile, Paths, Train, Val, Wandb

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "options").glob("*.yml"))
REGENERATE = "run `python -m dp_basicsr.checks.json_schema`"


@pytest.fixture(scope="module")
def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))


def test_the_committed_file_is_the_generated_one() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == json.loads(json.dumps(json_schema())), REGENERATE


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_editors_accept_the_shipped_files(file: Path, validator: Any) -> None:
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    validator.validate(read_options(file))


def test_editors_mark_what_the_programs_refuse_and_accept_other_programs_keys(validator: Any) -> None:
    opt = read_options(ROOT / "options/train_esrgan_dp.yml")
    for entry in ("train:total_itr=1", "foo=1", "scale=four", "network_g:num_feat=many", "train:perceptual_opt:mu=-1",
                  "val:metrics:psnr_y:crop_boarder=1", "datasets:train:gtsize=1", "datasets:valid={}", "path:x_a=1",
                  "train:gan_opt:gan_type=vanila", "datasets:val_1:io_backend:type=dsk", "model_type=~"):  # fmt: skip
        override(changed := deepcopy(opt), [entry])
        assert not validator.is_valid(changed), entry
    override(opt, ["x_mine=1", "train:x-mine=1", "network_g={type: OtherNet, width: 3}", "network_d=~"])
    validator.validate(opt)


@pytest.mark.parametrize(
    "section", [OptionFile, Train, Val, Logger, Wandb, Paths, DistParams, IoBackend, *DATASETS.values()]
)
def test_every_key_is_in_the_documentation(section: type[OptionFile]) -> None:
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert set(section.model_fields) <= named
