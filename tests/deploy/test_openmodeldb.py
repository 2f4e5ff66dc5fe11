"""The entry for OpenModelDB, against the fields that its repository requires (src/lib/model-props.ts)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from dp_basicsr.deploy.openmodeldb import write_entry

import pytest
import torch

from scripts import export_model
from tests.support.networks import make_network

# Name -> type, whether it is required, and what else must hold.
FIELDS: dict[str, tuple[type | tuple[type, ...], bool, Any]] = {
    "name": (str, True, len),
    "author": ((str, list), True, len),
    "license": (str, False, len),
    "tags": (list, True, len),
    "description": (str, True, lambda text: text == text.strip()),
    "date": (str, True, re.compile(r"\d{4}-(0[1-9]|1[012])-(0[1-9]|[12]\d|3[01])").fullmatch),
    "architecture": (str, True, re.compile(r"[a-z0-9]+(?:-[a-z0-9]+|[+])*").fullmatch),
    "size": (list, False, lambda sizes: all(isinstance(size, str) and size for size in sizes)),
    "scale": (int, True, lambda scale: 1 <= scale <= 16),
    "inputChannels": (int, True, lambda count: 1 <= count <= 4),
    "outputChannels": (int, True, lambda count: 1 <= count <= 4),
    "resources": (list, True, len),
    "dataset": (str, False, len),
    "datasetSize": (int, False, lambda count: count >= 1),
    "trainingIterations": (int, False, lambda count: count >= 1),
    "trainingBatchSize": (int, False, lambda count: count >= 1),
    "trainingHRSize": (int, False, lambda count: count >= 1),
    "images": (list, True, lambda images: True),
}
RESOURCE = {
    "type": ("pth", "onnx", "safetensors"),
    "platform": ("pytorch", "onnx"),
}


def check(entry: dict[str, Any]) -> None:
    """Hold an entry against FIELDS, as OpenModelDB's validateModel does."""
    assert entry.keys() <= FIELDS.keys()
    for name, (kind, is_required, condition) in FIELDS.items():
        value = entry.get(name)
        if value is None:
            assert not is_required, name
            continue
        assert isinstance(value, kind), name
        assert not isinstance(value, bool), name
        assert condition(value), name
    for resource in entry["resources"]:
        assert all(resource[name] in values for name, values in RESOURCE.items())
        assert resource["size"] >= 1
        assert re.fullmatch(r"[0-9a-f]{64}", resource["sha256"])
        assert all(url.startswith("https://") for url in resource["urls"])
        assert resource["urls"]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_the_command_writes_a_valid_entry(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"params": make_network().state_dict()}, "net_g_400.pth")
    arguments = ["--model_path", "net_g_400.pth", "--format", kind, "-o", f"mine.{kind}", "--openmodeldb", "entry.json"]
    assert export_model.main(arguments) == 0
    assert (
        "wrote entry.json; fill in author, tags, description, resources: urls, images, license"
        in capsys.readouterr().out
    )
    text = Path("entry.json").read_text()
    entry = json.loads(text)
    check(entry)
    assert text == json.dumps(entry, indent=4), "as JSON.stringify(entry, null, 4), which it insists on"
    assert (entry["name"], entry["architecture"], entry["size"], entry["scale"]) == (
        "mine",
        "esrgan",
        ["8nf", "2nb"],
        4,
    )
    assert entry["trainingIterations"] == 400
    data = Path(f"mine.{kind}").read_bytes()
    assert entry["resources"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert entry["resources"][0]["size"] == len(data)
    with pytest.raises(SystemExit, match="2"):
        export_model.main(arguments)


def test_the_run_gives_batch_size_data_and_hr_size() -> None:
    Path("out.onnx").write_bytes(b"network")
    options = {"datasets": {"train": {"gt_size": 128, "batch_size_per_gpu": 16}}}
    facts = {
        "arch": "MSRResNet", "scale": "3", "iteration": "5000", "options": json.dumps(options),
        "dataset_DIV2K": "HR: 800 images, sha256 0", "dataset_Flickr2K": "HR: 2650 images, sha256 0",
    }  # fmt: skip
    write_entry(Path("entry.json"), "onnx", Path("out.onnx"), facts, "Apache-2.0")
    entry = json.loads(Path("entry.json").read_text())
    check(entry)
    assert entry["architecture"] == "sr-res-net"
    assert (entry["trainingBatchSize"], entry["trainingHRSize"]) == (16, 128)
    assert (entry["dataset"], entry["datasetSize"], entry["license"]) == ("DIV2K, Flickr2K", 3450, "Apache-2.0")


def test_ncnn_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"params": make_network().state_dict()}, "net.pth")
    with pytest.raises(SystemExit, match="2"):
        export_model.main(["--model_path", "net.pth", "--format", "ncnn", "-o", "n", "--openmodeldb", "e.json"])
    assert "--openmodeldb: it lists safetensors, pth, onnx files, got" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["net.pth"]
