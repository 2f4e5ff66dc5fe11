"""Loading a file never runs code: such a file is refused in one line that names the code."""

from __future__ import annotations

import ast
import datetime
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_basicsr.archs.pretrained import read_state_dict
from dp_basicsr.checkpoint.resume import read_state, require_networks
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.errors import UserError
from dp_basicsr.models import PSNRModel
from dp_basicsr.utils.safe_load import load

import pytest
import torch
from torch import nn

from tests.support.fuzz import ENDLESS, endless
from tests.support.options import model_options
from tests.support.programs import ROOT


class Evil:
    """Unpickling it creates a file called ``ran``."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def write(content: Any, form: str, path: str) -> Path:
    """As torch writes it, or wrote it before 1.6, or as pickle alone."""
    if form.startswith("pickle"):
        Path(path).write_bytes(pickle.dumps(content, int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return Path(path)


SYSTEM = f"{os.system.__module__}.system"
READERS: dict[str, Callable[[Path], Any]] = {
    "any": lambda path: load(path, "file"),
    "training state": read_state,
    "backbone": read_state_dict,
    "deployed": read_weights,
    "start": lambda path: require_networks({"path": {"pretrain_network_g": str(path)}}),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle0", "pickle2", "pickle4", "pickle5"])
def test_code_in_a_file_is_named_and_not_run(form: str) -> None:
    for reader, read in READERS.items():
        path = write({"params": Evil(), "iter": 3}, form, "evil.state" if "state" in reader else "evil.pth")
        with pytest.raises(UserError) as caught:
            read(path)
        assert SYSTEM in str(caught.value), reader
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not Path("ran").exists()
        assert "torch.save(model.state_dict(), FILE), where it was made, writes weights" in str(caught.value)
    if form == "legacy":  # it can fail
        torch.load(path, weights_only=False)
        assert Path("ran").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_unbounded_nesting_is_refused_at_once(kind: str, form: str) -> None:
    path = write({"params": endless(kind), "iter": 3, "run": endless(kind)}, form, "endless.state")
    for reader in [READERS["any"]] if "share" in kind else READERS.values():
        with pytest.raises(UserError, match=r"endless.state .*more than (1,000,000 values|50 containers)"):
            reader(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [(nn.Linear(1, 1), "Linear"), ({"when": datetime.datetime(2022, 1, 1)}, "datetime"), ({"a": Path("b")}, "pathlib")],
)
def test_other_classes_are_named(content: Any, name: str) -> None:
    torch.save(content, "file.pth")
    with pytest.raises(UserError, match=rf"contains more than weights \(\S*{name}") as caught:
        load("file.pth", "file")
    assert "weights_only" not in str(caught.value), "torch's advice to run it is not passed on"


def test_torchscript_and_damage_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(nn.Linear(1, 1)).save("script.pth")
    with pytest.raises(UserError, match=r"TorchScript.*torch\.jit\.load\(.*\.state_dict\(\)"):
        load("script.pth", "file")
    for content in (b"", b"no checkpoint", Path("script.pth").read_bytes()[:100]):
        Path("damaged.pth").write_bytes(content)
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            load("damaged.pth", "file", "make it anew")
    # torch itself reads a changed weight without a word, and files without checksums.
    torch.save(nn.Linear(100, 100).state_dict(), "damaged.pth")
    content = bytearray(Path("damaged.pth").read_bytes())
    content[len(content) // 2] ^= 64
    Path("damaged.pth").write_bytes(content)
    torch.load("damaged.pth", weights_only=True)
    with pytest.raises(UserError, match="damaged or not a checkpoint.*checksum"):
        load("damaged.pth", "file")
    monkeypatch.setattr(torch.serialization, "get_crc32_options", lambda: False)
    torch.save(nn.Linear(100, 100).state_dict(), "without.pth")
    assert zipfile.ZipFile("without.pth").testzip()
    assert set(load("without.pth", "file")) == {"weight", "bias"}
    with pytest.raises(UserError, match="No such file.*; make it anew"):
        load("nowhere.pth", "file", "make it anew")


def test_basicsr_loads_for_us_as_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's load_network does not pass weights_only, so this variable would let it run code."""
    write({"params": Evil()}, "legacy", "evil.pth")
    options = model_options("PSNRModel", tmp_path, perceptual_opt=None)
    options["path"]["pretrain_network_g"] = "evil.pth"
    for value in ("0", "1"):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
        with pytest.raises(UserError, match=SYSTEM):
            PSNRModel(options)
    assert not Path("ran").exists()


def test_a_mismatched_network_is_named(tmp_path: Path) -> None:
    options = model_options("PSNRModel", tmp_path, perceptual_opt=None)
    options["path"]["pretrain_network_g"] = "other.pth"
    for content in ({"params": nn.Linear(1, 1).state_dict()}, {"weights": {}}, [1], {"params": 3}):
        torch.save(content, "other.pth")
        with pytest.raises(UserError, match="other.pth.*(does not match|expected the weights)") as caught:
            PSNRModel(options)
        assert "\n" not in str(caught.value)


def test_torch_load_is_called_in_one_place_only() -> None:
    """Only safe_load.py calls torch.load, with weights_only=True, and nothing unpickles."""
    calls = {}
    for folder in ("dp_basicsr", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "torch.load", "torch.jit.load", "pickle.load", "pickle.loads", "joblib.load", "np.load",
                    "numpy.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec",
                ):  # fmt: skip
                    calls[path.relative_to(ROOT).as_posix()] = ast.unparse(node)
    assert list(calls) == ["dp_basicsr/utils/safe_load.py"]
    assert "weights_only=True" in calls["dp_basicsr/utils/safe_load.py"]
