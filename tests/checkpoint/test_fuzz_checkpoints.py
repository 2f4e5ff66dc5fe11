"""Damaged and wrong checkpoints: a run resumes from an intact one, or stops with one readable message.

``make fuzz`` tries more of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint import resume
from dp_basicsr.errors import UserError, readable
from dp_basicsr.options import parse_command_line, read_given_options
from dp_basicsr.runs.start import start_run
from dp_basicsr.runs.training import train

import pytest
import torch
from basicsr.utils import get_root_logger
from hypothesis import Phase, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support.fuzz import ENDLESS, endless, generated, judge, no_hang, sections
from tests.support.networks import make_network
from tests.support.options import SMALL_PSNR

RUN = Path("experiments/small")
STATE, MANIFEST, NETWORK = "training_states/4.state", "training_states/4.sha256", "models/net_g_4.pth"
NEWEST = (STATE, MANIFEST, NETWORK)
FILES = (*NEWEST, *(name.replace("4", "2") for name in NEWEST))


class Files(dict[str, bytes]):
    """Names and contents; hypothesis does not print them."""

    def __repr__(self) -> str:
        return "Files(...)"


RESUMED: list[Path] = []  # the state that the last start resumed from


def start(*arguments: str) -> str:
    """Train with the real program; return the message or ``right``."""
    logger, options_of = get_root_logger(), resume.ResumePoint.options
    RESUMED.clear()

    def noting(point: resume.ResumePoint, opt: dict[str, Any]) -> dict[str, Any]:
        RESUMED.append(point.path)
        return options_of(point, opt)

    try:
        with no_hang(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume.ResumePoint, "options", noting)
            args = parse_command_line("", ["-opt", "small.yml", *arguments])
            train(start_run(read_given_options(args), args), "small.yml")
    except UserError as error:
        return str(error)
    finally:
        for handler in logger.handlers[1:]:
            handler.close()
            logger.removeHandler(handler)
    return "right"


@pytest.fixture
def whole(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Files of a run with checkpoints of iterations 2 and 4."""
    monkeypatch.setattr("dp_basicsr.utils.atomic_io.RETRY_AFTER", 0.0)
    Path("small.yml").write_text(SMALL_PSNR)
    assert start() == "right"
    return Files({name: (RUN / name).read_bytes() for name in FILES})


def put_back(files: Files) -> None:
    """Restore the run after the last case."""
    shutil.rmtree("experiments", ignore_errors=True)
    for name, content in files.items():
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).write_bytes(content)


def outside() -> list[Path]:
    """List all files except the experiment's."""
    return sorted(path for path in Path().rglob("*") if path.parts[0] != "experiments")


def flip(data: st.DataObject, content: bytes) -> bytes:
    """Overwrite, insert or delete bytes, half of them near the ends of the file; truncate or extend it."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        places = st.one_of(st.integers(0, len(changed)), st.integers(0, 400), st.integers(-1200, -1))
        place, new = data.draw(places) % (len(changed) + 1), data.draw(st.binary(min_size=1, max_size=8))
        end = place + data.draw(st.sampled_from([len(new), len(new), 0, 3 * len(new), len(content)]))
        changed[place:end] = data.draw(st.sampled_from([new, new, b"", 50 * new]))
    return bytes(changed)


REPLACED = ["gone", "empty", "folder", "pipe", "loop", "nowhere", "endless", "other", "copy", "line", "bytes", "bytes"]


def damage(data: st.DataObject, path: Path, others: list[Path]) -> None:
    """Replace a file with something else."""
    how, other = data.draw(st.sampled_from(REPLACED)), data.draw(st.sampled_from(others)).absolute()
    content = path.read_bytes() if path.is_file() else b""
    lines = content.splitlines(keepends=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("loop", "nowhere", "other", "endless"):
        path.symlink_to({"loop": path.name, "nowhere": "nowhere", "other": other, "endless": "/dev/zero"}[how])
    elif how == "copy" and other.is_file():
        shutil.copy(other, path)
    elif how == "line" and lines:
        place = data.draw(st.integers(0, len(lines) - 1))
        new = data.draw(
            st.sampled_from([b"", lines[place] * 2, b"0" * 64 + b"  a" * 300 + b"\n", b"f" * 64 + b"  /\n"])
        )
        path.write_bytes(b"".join([*lines[:place], new, *lines[place + 1 :]]))
    elif how == "bytes":
        path.write_bytes(flip(data, content))
    elif how == "empty":
        path.touch()


# Content that torch.load can read: tensors of every kind, huge ones in a few bytes, and garbage.
TENSORS = st.sampled_from([
    lambda: torch.ones(0), lambda: torch.tensor(2.0), lambda: torch.full((3,), float("nan")), lambda: torch.ones(8, 3),
    lambda: torch.ones(3, dtype=torch.complex64), lambda: torch.ones(3, dtype=torch.bool), lambda: torch.ones(2).half(),
    lambda: torch.arange(4), lambda: torch.ones(1).expand(10**6, 10**6), lambda: torch.ones(1).expand(8, 3, 3, 3),
    lambda: torch.sparse_coo_tensor(size=(10**9, 10**9)), lambda: torch.empty(3, device="meta"),
    lambda: torch.nn.Parameter(torch.ones(3)), lambda: torch.ones(3).to(torch.float8_e4m3fn),
])  # fmt: skip
OTHER_TENSORS = st.sampled_from(
    [torch.Tensor.double, torch.zeros_like, lambda value: value[None], lambda value: value * float("inf")]
)
PLAIN = st.one_of(
    st.sampled_from([None, True, 0, -1, 1, 3, 10**6, -(10**6), 2**31, 10**30, 0.5, float("nan"), float("inf")]),
    st.sampled_from(["", "4", "small", "\n\x1b[1m", "x" * 3000, b"", b"ab", torch.float16, torch.Size([2])]),
    st.integers(), st.floats(), st.text(max_size=6), TENSORS.map(lambda make: make()),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(["params", "params_ema", "state_dict", "iter", "optimizers", "position", "run", "random", "scale"]),
    st.sampled_from(["conv_first.weight", "body.0.rdb1.conv1.weight", "body.99999999.x", "model.1.sub.x.", "a" * 2000]),
    st.sampled_from(["model.1.sub.0.", "module.", "conv_last.weight", "upconv1.weight", "model.2.weight", "\n"]),
    st.text(max_size=6), st.integers(-2, 3), st.booleans(), st.none(),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(st.integers(), st.integers(), max_size=2).map(Counter),
        st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=4,
)


def change(data: st.DataObject, content: Any) -> Any:
    """Replace, delete, rename or add values of a file's content, or all of it."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(VALUES)
    content = deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from([part for part in sections(content) if part] or [[None]]))
        key = data.draw(st.sampled_from(list(section) if isinstance(section, dict) else list(range(len(section)))))
        how = data.draw(st.sampled_from(["delete", "wrap", "rename", "new", "new"]))
        if how == "delete":
            del section[key]
        elif how == "wrap":
            section[key] = [section[key]]
        elif how == "rename" and isinstance(section, dict):
            section[data.draw(KEYS)] = section.pop(key)
        elif isinstance(section[key], torch.Tensor) and data.draw(st.booleans()):
            section[key] = data.draw(OTHER_TENSORS)(section[key])
        else:
            section[key] = data.draw(VALUES)
    if data.draw(st.integers(0, 9)) == 0:
        content[data.draw(KEYS)] = endless(data.draw(st.sampled_from(ENDLESS)))
    return content


def store(data: st.DataObject, content: Any, path: Path) -> None:
    """Write with torch.save, in its current or old format."""
    torch.save(content, path, _use_new_zipfile_serialization=data.draw(st.booleans()))


def seal(folder: Path) -> None:
    """Write a manifest for the current files of iteration 4."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (NETWORK, STATE)]
    (folder / MANIFEST).write_text("".join(lines))


@generated(40, phases=[Phase.generate])
@given(data=st.data())
def test_a_run_resumes_from_an_intact_checkpoint_or_says_why_not(whole: Files, data: st.DataObject) -> None:
    """By itself or from a named state; a checkpoint with a manifest and a changed byte is never used.

    Files are damaged, or readable with wrong content: of another model or program, or garbage.
    """
    put_back(whole)
    auto, wrong_content = data.draw(st.booleans()), data.draw(st.booleans())
    key = "pretrain_network_g" if not auto and data.draw(st.integers(0, 4)) == 0 else "resume_state"
    folder = RUN
    if not auto and data.draw(st.booleans()):
        # A state of another folder; this run's has a network of the same iteration.
        shutil.rmtree("given", ignore_errors=True)
        folder = RUN.rename("given")
        (RUN / "models").mkdir(parents=True)
        shutil.copy(folder / NETWORK, RUN / "models")
    names = data.draw(st.lists(st.sampled_from((*NEWEST, *FILES)), min_size=1, max_size=3))
    if wrong_content:
        names = [data.draw(st.sampled_from([STATE, STATE, STATE, NETWORK])), MANIFEST]
        path = folder / names[0]
        store(data, change(data, torch.load(path, weights_only=True)), path)
        if data.draw(st.booleans()):
            seal(folder)
        else:
            (folder / MANIFEST).unlink()
    else:
        for name in names:
            damage(data, folder / name, [folder / other for other in FILES])
        if not auto and (folder / MANIFEST).is_file() and data.draw(st.booleans()):
            (folder / MANIFEST).unlink()
    before = outside()
    named = STATE if key == "resume_state" else NETWORK
    arguments = ["--auto_resume", "--force_yml"] if auto else ["--force_yml", f"path:{key}={folder / named}"]
    message = start(*arguments, "train:total_iter=5")
    judge(readable(message))
    assert outside() == before
    if not auto or wrong_content:
        return
    if message == "right":
        (chosen,) = RESUMED
        assert chosen.parent == RUN.absolute() / "training_states"  # it has not started again
        if chosen.with_suffix(".sha256").is_file():
            files = (f"training_states/{chosen.stem}.state", f"models/net_g_{chosen.stem}.pth")
            assert all((RUN / name).read_bytes() == whole[name] for name in files)
    if not set(names) & set(FILES[3:]):  # the checkpoint of iteration 2 is intact
        # A folder in place of a file is named when the run overwrites it.
        assert message == "right" or "start a new run" in message or "cannot be saved" in message


def load(path: Path) -> str:
    """Load a network like inference.py and export_model.py, and upscale one image."""
    try:
        with no_hang(), torch.inference_mode():
            network = load_network([path])
            assert network.module(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8 * network.scale, 8 * network.scale)
    except UserError as error:
        return str(error)
    return "right"


@generated(24, phases=[Phase.generate])
@given(data=st.data())
def test_any_network_is_loaded_or_refused(data: st.DataObject) -> None:
    arch, scale = data.draw(st.sampled_from([("RRDBNetDP", 4), ("RRDBNet", 2), ("MSRResNet", 3)]))
    state = dict(make_network(arch, scale, num_grow_ch=4).state_dict())
    path = Path(f"net.{data.draw(st.sampled_from(['pth', 'pth', 'safetensors']))}")
    if path.suffix == ".safetensors":
        save_file(state, path, {"scale": "2"})
        path.write_bytes(flip(data, path.read_bytes()))
    else:
        content = {"params": state, "params_ema": state} if data.draw(st.booleans()) else state
        store(data, change(data, content), path)
        if data.draw(st.integers(0, 3)) == 0:
            path.write_bytes(flip(data, path.read_bytes()))
    judge(readable(load(path)))
