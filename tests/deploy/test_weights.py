"""Weights from every kind of file there is; the oracle for foreign names is spandrel, which chaiNNer loads with."""

from __future__ import annotations

import argparse
import datetime
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from dp_basicsr.archs.open_network import load_network, open_network
from dp_basicsr.checkpoint.weights import interpolate, read_weights
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.networks import make_network

StateDict = dict[str, Tensor]
IMAGE = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(5))


def esrgan_names(state: StateDict) -> StateDict:
    """BasicSR's names as the original ESRGAN code called them."""
    pairs = [("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), (".rdb", ".RDB"), ("conv_up", "upconv")]
    renamed = {}
    for name, value in state.items():
        for new, old in [*pairs, ("conv_hr", "HRconv")]:
            name = name.replace(new, old)
        renamed[name] = value
    return renamed


def oldest_names(state: StateDict) -> StateDict:
    """BasicSR's names in the flat form of ESRGAN's first release, whose layers are numbered."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    ups = sum(name.startswith("conv_up") and name.endswith("weight") for name in state)
    fixed = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    fixed |= {f"conv_up{number}": f"model.{3 * number}" for number in range(1, ups + 1)}
    fixed |= {"conv_hr": f"model.{3 * ups + 2}", "conv_last": f"model.{3 * ups + 4}"}
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        new = re.sub(r"^body\.(\d+)\.rdb(\d)\.conv(\d)$", r"model.1.sub.\1.RDB\2.conv\3.0", fixed.get(layer, layer))
        renamed[f"{new}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("wrap", ["params", "params_ema", "state_dict", "", "module"])
def test_every_container_gives_the_same_weights(wrap: str) -> None:
    state = make_network().state_dict()
    content = {wrap: state} if wrap not in ("", "module") else state
    if wrap == "module":
        content = {f"module.{name}": value for name, value in state.items()}
    torch.save(content, "net.pth")
    found = read_weights(Path("net.pth")).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_averaged_weights_are_preferred() -> None:
    last, averaged = make_network(scale=4).state_dict(), make_network(scale=4).state_dict()
    averaged = {name: value + 1 for name, value in averaged.items()}
    torch.save({"params": last, "params_ema": averaged}, "net.pth")
    assert torch.equal(read_weights(Path("net.pth")).state["conv_last.bias"], averaged["conv_last.bias"])


def test_safetensors_with_its_notes_and_half_precision_as_float32() -> None:
    state = {name: value.half() for name, value in make_network().state_dict().items()}
    save_file(state, "net.safetensors", metadata={"scale": "4"})
    weights = read_weights(Path("net.safetensors"))
    assert weights.notes == {"scale": "4"}
    assert all(torch.equal(value, state[name].float()) for name, value in weights.state.items())


@pytest.mark.parametrize("names", [esrgan_names, oldest_names])
@pytest.mark.parametrize("scale", [2, 4])
def test_original_esrgan_files_give_the_pixels_that_spandrel_gives(
    names: Callable[[StateDict], StateDict], scale: int
) -> None:
    spandrel = pytest.importorskip("spandrel")
    torch.save(names(make_network(scale=scale).state_dict()), "old.pth")
    theirs = spandrel.ModelLoader().load_from_file("old.pth")
    ours = load_network([Path("old.pth")], scale=2 if scale == 2 else None)
    assert ours.scale == theirs.scale == scale
    torch.testing.assert_close(ours.module(IMAGE), theirs.model(IMAGE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 8])
def test_the_1x_and_8x_esrgan_of_2018_open(scale: int) -> None:
    """Theirs have the growth of 32 that spandrel assumes."""
    state = dict(make_network(scale=4).state_dict())
    if scale == 8:
        state |= {f"conv_up3.{kind}": state[f"conv_up2.{kind}"] for kind in ("weight", "bias")}
    else:
        state = {name: value for name, value in state.items() if not name.startswith("conv_up")}
    torch.save(oldest_names(state), "old.pth")
    opened = load_network([Path("old.pth")])
    assert opened.scale == scale
    assert opened.module(IMAGE).shape == (1, 3, 7 * scale, 9 * scale)


def old_with(shape: tuple[int, ...] | None, name: str) -> StateDict:
    """ESRGAN of 2018 with a tensor of another shape, or without what comes after it."""
    state = oldest_names(make_network(scale=4).state_dict())
    if shape is None:
        names = list(state)
        return {one: state[one] for one in names[: names.index(name)]}
    return state | {name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (old_with((8,), "model.0.weight"), r"expected 4 dimensions of conv_first.weight, got shape \(8,\)"),
        (make_network().state_dict() | {"conv_first.weight": torch.ones(8)}, "expected 4 dimensions of conv_first"),
        (old_with((0, 8, 3, 3), "model.10.weight"), "damaged or incomplete: spandrel cannot build it"),
        (old_with(None, "model.3.weight"), "damaged or incomplete: .*it has no 'model.1.weight'"),
        (old_with(None, "model.1.sub.0.RDB2.conv1.0.weight"), "damaged or incomplete: .*it has no 'model.1.weight'"),
        (old_with(None, "model.10.weight"), "expected a network that maps an image to one of as many channels"),
        (old_with(None, "model.1.sub.0.RDB1.conv1.0.weight"), "expected a super-resolution network"),
        (make_network(scale=2, num_grow_ch=4).state_dict() | {"conv_last.weight": torch.ones(0, 8, 3, 3)}, "damaged"),
    ],
)
def test_old_files_that_are_damaged_or_too_short_are_named(content: StateDict, message: str) -> None:
    torch.save(content, "old.pth")
    with pytest.raises(UserError, match=message):
        load_network([Path("old.pth")])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.8, 1.0])
def test_interpolation_is_esrgans(alpha: float, network_file: Callable[..., Path]) -> None:
    first = read_weights(network_file("psnr.pth", scale=4))
    second = read_weights(network_file("gan.pth", scale=4))
    second = replace(second, state={name: value * 3 + 0.1 for name, value in second.state.items()})
    mixed = interpolate(first, second, alpha)
    for name, value in mixed.state.items():  # net_interp.py of the original ESRGAN
        torch.testing.assert_close(value, (1 - alpha) * first.state[name] + alpha * second.state[name])
    share = Fraction(alpha).limit_denominator(100)
    assert mixed.notes["interpolation"] == f"{float(1 - share):g} * psnr.pth + {float(share):g} * gan.pth"


def test_interpolation_of_different_networks_names_what_differs(network_file: Callable[..., Path]) -> None:
    first, second = network_file("a.pth"), network_file("b.pth", num_feat=12)
    with pytest.raises(UserError, match=r"b.pth cannot be interpolated, .*conv_first.weight of shape \(12, 3, 3, 3\)"):
        load_network([first, second])
    with pytest.raises(UserError, match="from 0 .* to 1 .*got 1.5"):
        load_network([first, first], alpha_interp=1.5)
    with pytest.raises(UserError, match="needs two models"):
        load_network([first], alpha_interp=0.5)


class Harmless:
    """Something that is not a tensor."""

    def __init__(self) -> None:
        self.text = "inside"


BESIDE: dict[str, Any] = {
    "numbers of numpy": {"iter": np.int64(3), "psnr": np.float64(28.5), "history": np.zeros(3)},
    "arguments": {"args": argparse.Namespace(lr=1e-4)},
    "a path and a time": {"path": Path("x"), "when": datetime.datetime(2026, 1, 1)},
    "objects": {"config": [Harmless()], "hooks": {Harmless: {"best": Harmless()}}},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_objects_beside_the_weights_are_left_out(beside: str, zipped: bool) -> None:
    """open-mmlab/mmengine#1655: torch >= 2.6 refuses the whole file."""
    state = make_network().state_dict()
    torch.save({"params": state, **BESIDE[beside]}, "net.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(Path("net.pth")).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_losses_of_a_lightning_module_are_left_out() -> None:
    state = make_network().state_dict()
    content = {f"model.{name}": value for name, value in state.items()} | {"loss.vgg.weight": torch.ones(3, 3)}
    torch.save({"state_dict": content, "pytorch-lightning_version": "2.5.0", "callbacks": {}}, "last.ckpt")
    assert read_weights(Path("last.ckpt")).state.keys() == state.keys()


class Calls:
    """Unpickling it would call ``torch.set_num_threads``, which is visible and does no harm."""

    def __reduce__(self) -> Any:
        return torch.set_num_threads, (torch.get_num_threads() + 1,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_called_for_objects_beside_the_weights(zipped: bool) -> None:
    threads = torch.get_num_threads()
    state = make_network().state_dict()
    torch.save({"params": state, "extra": Calls()}, "net.pth", _use_new_zipfile_serialization=zipped)
    assert read_weights(Path("net.pth")).state.keys() == state.keys()
    assert torch.get_num_threads() == threads


def test_a_name_that_belies_its_content_does_not_matter() -> None:
    """Iyashinouta/sd-model-downloader#11: a browser or a script gave a .safetensors file the name of a checkpoint."""
    state = dict(make_network().state_dict())
    save_file(state, "net.safetensors", metadata={"scale": "4"})
    Path("net.safetensors").rename("renamed.pth")
    torch.save({"params": state}, "renamed.safetensors")
    torch.save(state, "pytorch_model.bin")
    for name in ("renamed.pth", "renamed.safetensors", "pytorch_model.bin"):
        network = load_network([Path(name)])
        torch.testing.assert_close(network.module(IMAGE), make_network()(IMAGE), rtol=0, atol=0)
    assert read_weights(Path("renamed.pth")).notes == {"scale": "4"}


def test_an_archive_with_the_file_in_it_is_named() -> None:
    torch.save({"params": make_network().state_dict()}, "net.pth")
    with zipfile.ZipFile("model.zip", "w") as archive:
        archive.write("net.pth", "release/net.pth")
        archive.writestr("release/README.md", "")
    with pytest.raises(UserError, match=r"model.zip is a ZIP archive .release/net.pth, release/README.md.: unpack it"):
        load_network([Path("model.zip")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizers": [], "iter": 3}, "is a training state, not a network: give models/net_g"),
        ({"params": {"layer": Harmless()}}, r"contains more than weights \(.*Harmless\)"),
        ({"epoch": 3, "name": "x"}, "expected the weights of a generator, got a mapping with epoch, name"),
        ([1, 2], "expected the weights of a generator, got list"),
        ({"fc.weight": torch.ones(2)}, "expected a super-resolution network .* got 1 tensors such as fc.weight"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page or a server's message .*AccessDenied"),
        (b'{"message": "Not Found"}', 'is a web page or a server\'s message \\({"message": "Not Found"}\\)'),
        (b"PK\3\4 cut off", "is damaged or not a checkpoint"),
        (b"\x1f\x8b\x08 of a download", "is compressed .gzip.: unpack it"),
        (b"7z\xbc\xaf\x27\x1c of a download", "is compressed .7-Zip.: unpack it"),
        (b"Rar! of a download", "is compressed .RAR.: unpack it"),
        (b"", "is empty: copy or download it again"),
    ],
)
def test_what_is_no_network_is_told_apart(content: object, message: str) -> None:
    path = Path("net.pth")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as raised:
        load_network([path])
    assert "\n" not in str(raised.value)


def test_damaged_safetensors_missing_file_and_nan() -> None:
    Path("net.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_network([Path("net.safetensors")])
    with pytest.raises(UserError, match="nowhere.pth: no such file"):
        load_network([Path("nowhere.pth")])
    state = make_network().state_dict()
    state["conv_hr.bias"][2] = float("nan")
    torch.save(state, "nan.pth")
    with pytest.raises(UserError, match="1 tensors contain NaN or infinity .conv_hr.bias"):
        load_network([Path("nan.pth")])


def test_a_mismatch_names_keys_and_shapes_in_one_message(network_file: Callable[..., Path]) -> None:
    weights = read_weights(network_file())
    del weights.state["conv_hr.bias"]
    weights.state["extra.weight"] = torch.ones(3)
    weights.state["body.1.rdb2.conv2.weight"] = torch.ones(32, 39, 3, 3)
    with pytest.raises(UserError) as raised:
        open_network(weights)
    assert str(raised.value) == (
        f"model {weights.path} looks like RRDBNetDP x4 (2 blocks, 8 features, growth 32), but has "
        "missing: conv_hr.bias (8,); unexpected: extra.weight (3,); "
        "body.1.rdb2.conv2.weight of shape (32, 39, 3, 3) instead of (32, 40, 3, 3)"
    )
