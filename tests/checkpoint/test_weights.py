"""The best weights in a file of any kind, under BasicSR's names; layouts of the trainers that people use."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint.weights import interpolate, parts_of, read_weights
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tests.support.fuzz import draws
from tests.support.networks import make_network, network_file
from tests.support.programs import difference

State = dict[str, Tensor]


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


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def optimizer(state: State) -> dict[str, Any]:
    """The state of an Adam over the weights."""
    moments = {number: {"step": torch.tensor(3.0), "exp_avg": value * 0, "exp_avg_sq": value * 0}
               for number, value in enumerate(state.values())}  # fmt: skip
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}


# raw weights, averaged ones -> content of a file that has both; the optimizer's tensors are no network.
BOTH: dict[str, Callable[[State, State], Any]] = {
    "BasicSR, neosr": lambda raw, ema: {"params": raw, "params_ema": ema},
    "GFPGAN": lambda raw, ema: {"g": raw, "d": {"x.weight": torch.ones(2)}, "g_ema": ema, "g_optim": optimizer(raw)},
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema, "optimizer": optimizer(raw), "arch": "x"},
    "timm, DDP": lambda raw, ema: {"state_dict": prefixed(raw, "module."), "state_dict_ema": prefixed(ema, "module.")},
    "model, ema": lambda raw, ema: {"epoch": 3, "model": raw, "ema": ema, "optimizer": optimizer(raw)},
    "ema.module": lambda raw, ema: {"model": raw, "ema": {"module": ema, "updates": 7}},
    "ema_state_dict": lambda raw, ema: {"state_dict": raw, "ema_state_dict": ema},
    "several decays": lambda raw, ema: {"net": raw, "emas": [ema, raw]},
    "model_ema": lambda raw, ema: {"net": raw, "model_ema": ema},
    "mmengine": lambda raw, ema: {  # exchanged before saving
        "meta": {}, "message_hub": {}, "state_dict": prefixed(ema, "generator."), "optimizer": optimizer(raw),
        "ema_state_dict": {"steps": torch.tensor(3), **prefixed(raw, "module.generator.")}},
    "mmagic": lambda raw, ema: {"state_dict": {
        **prefixed(raw, "generator."), **prefixed(ema, "generator_ema."), "discriminator.x.weight": torch.ones(2),
        "step_counter": torch.tensor(5), "data_preprocessor.mean": torch.ones(3, 1, 1)}},
    "Lightning, EMA module": lambda raw, ema: {
        "pytorch-lightning_version": "2.5.0", "optimizer_states": [optimizer(raw)], "callbacks": {},
        "state_dict": {**prefixed(raw, "model."), **prefixed(ema, "ema_model."), "loss.vgg.weight": torch.ones(3)}},
    "Lightning, EMA callback": lambda raw, ema: {
        "pytorch-lightning_version": "2.5.0", "state_dict": prefixed(raw, "net."),
        "callbacks": {"EMACallback": {"ema_state_dict": prefixed(ema, "net.")}}},
    "Lightning, WeightAveraging": lambda raw, ema: {
        "pytorch-lightning_version": "2.6.0", "state_dict": prefixed(ema, "net."), "averaging_state": {},
        "current_model_state": prefixed(raw, "net.")},
    "Lightning, LitEma": lambda raw, ema: {"state_dict": {
        **prefixed(raw, "model."), "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3),
        **{f"model_ema.{name.replace('.', '')}": value for name, value in ema.items()}}},
    "Lightning, two prefixes": lambda raw, ema: {"state_dict": {
        **prefixed(raw, "net_g."), **prefixed(ema, "net_g_ema.")}},
    "Lightning, any attribute": lambda raw, ema: {"state_dict": {
        **prefixed(raw, "sr_model."), **prefixed(ema, "sr_model_ema."), "criterion.weight": torch.ones(3)}},
    "ema-pytorch": lambda raw, ema: {"model": raw, "ema": {
        "initted": torch.tensor(True), "step": torch.tensor(9), **prefixed(raw, "online_model."),
        **prefixed(ema, "ema_model.")}},
    "torch_ema": lambda raw, ema: {"model": raw, "ema": {
        "decay": 0.9, "num_updates": 3, "shadow_params": list(ema.values()), "collected_params": None}},
    "icefall": lambda raw, ema: {"model": raw, "model_avg": {name: value.double() for name, value in ema.items()}},
    "AveragedModel": lambda raw, ema: {
        "model": raw, "swa_model": {"n_averaged": torch.tensor(3), **prefixed(ema, "module.")}},
}  # fmt: skip

ALONE: dict[str, Callable[[State], Any]] = {
    "bare, KAIR, accelerate": lambda state: state,
    "BasicSR": lambda state: {"params": state},
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "compiled in DDP": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "FSDP": lambda state: {"model": prefixed(state, "_fsdp_wrapped_module.")},
    "mmagic": lambda state: {"state_dict": {**prefixed(state, "generator."), "data_preprocessor.mean": torch.ones(3)}},
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "optimizer_states": [optimizer(state)]},
    "beside the state of a generator of numbers": lambda state: {"network": state, "rng_state": torch.get_rng_state()},
    "Lightning, PatchGAN": lambda state: {
        "state_dict": {
            **prefixed(state, "model.net."),
            "model.disc.0.weight": torch.ones(2),
            "loss.vgg.0.weight": torch.ones(3),
        }
    },
    "both networks in DDP": lambda state: {**prefixed(state, "module.net_g."), "module.net_d.0.weight": torch.ones(2)},
    "DeepSpeed": lambda state: {"module": prefixed(state, "module."), "optimizer": optimizer(state)},
    "unusual": lambda state: {"weights": {"of": state}, "optimizer": optimizer(state), "iter": 3},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")},
    "both networks": lambda state: {
        "netG": state,
        "netD": {"x.weight": torch.ones(2)},
        "optimizers": [optimizer(state)],
    },
}


def write(content: Any, path: Path, rng: random.Random) -> None:
    """Save as a trainer does: in either format of torch, and often with objects beside the weights."""
    if rng.random() < 0.5 and isinstance(content, dict):
        # open-mmlab/mmengine#1655: torch >= 2.6 refuses the whole file.
        content = {**content, **BESIDE[rng.choice(list(BESIDE))]}
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.8)


def networks(rng: random.Random) -> tuple[State, State]:
    """A small network of a random kind, and its average."""
    raw = dict(
        make_network(rng.choice(["RRDBNetDP", "MSRResNet"]), 4, num_feat=4, num_grow_ch=4, num_block=1).state_dict()
    )
    return raw, {name: value * 0.5 for name, value in raw.items()}


@pytest.mark.parametrize("layout", BOTH)
def test_the_average_is_taken_and_named(layout: str, tmp_path: Path) -> None:
    for rng in draws(2):
        raw, ema = networks(rng)
        write(BOTH[layout](raw, ema), tmp_path / "net.pth", rng)
        weights = read_weights(tmp_path / "net.pth")
        assert not difference(weights.state, ema), f"{layout}: {weights.choice or 'nothing said'}"
        assert weights.choice.startswith("EMA weights")
        assert "EMA weights" in load_network([tmp_path / "net.pth"]).title


@pytest.mark.parametrize("layout", ALONE)
def test_the_only_weights_are_taken(layout: str, tmp_path: Path) -> None:
    for rng in draws(2):
        state, _ = networks(rng)
        write(ALONE[layout](state), tmp_path / "net.pth", rng)
        assert not difference(read_weights(tmp_path / "net.pth").state, state)


@pytest.mark.parametrize("also", [{}, {"criterion.weight": torch.ones(3), "disc.0.weight": torch.ones(2)}])
def test_the_attribute_of_a_trainer_before_all_names_is_left_out(also: State, tmp_path: Path) -> None:
    """torchgeo#4036: whatever it is called, where the names behind it are those of a network."""
    for rng in draws(2):
        state, _ = networks(rng)
        torch.save({"state_dict": {**prefixed(state, "upscaler.encoder."), **also}}, tmp_path / "net.pth")
        assert not difference(dict(load_network([tmp_path / "net.pth"]).module.state_dict()), state)
        torch.save({**prefixed(state, "sr_model."), **also}, tmp_path / "net.pth")
        assert not difference(read_weights(tmp_path / "net.pth", names=state).state, state)


def test_of_networks_behind_unknown_prefixes_the_one_that_opens_is_taken() -> None:
    state, other = networks(random.Random(0))
    torch.save({"state_dict": {"critic.0.weight": torch.ones(2, 3, 3, 3), **prefixed(state, "sr.")}}, "one.pth")
    opened = load_network("one.pth")
    assert not difference(dict(opened.module.state_dict()), state)
    assert opened.choice == "weights sr, of critic, sr"
    torch.save({**state, **prefixed(other, "teacher.")}, "beside.pth")
    with pytest.raises(UserError, match="unexpected: teacher"):
        load_network("beside.pth")
    assert parts_of(prefixed(state, "0.")).keys() == {"0"}
    assert not parts_of({**prefixed(state, "0."), **prefixed(other, "1.")}), "the blocks of a list are no networks"
    large = {f"teacher.{number}.weight": torch.ones(1) for number in range(100 * len(state))}
    torch.save({**large, **prefixed(state, "student.")}, "small.pth")
    assert load_network("small.pth").choice == "weights student, of student, teacher"
    torch.save({**prefixed(state, "modelTeacher."), **prefixed(other, "modelStudent.")}, "two.pth")
    message = "has the networks modelTeacher, modelStudent: save one alone .*, or name it in path: param_key_g"
    with pytest.raises(UserError, match=message):
        load_network("two.pth")
    with pytest.raises(UserError, match="has modelTeacher, modelStudent: give one of them as path: param_key_g"):
        read_weights(Path("two.pth"), "params", names=state)
    for key, weights in (("modelTeacher", state), ("modelStudent", other)):
        assert not difference(read_weights(Path("two.pth"), key, names=state).state, weights)


@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_both_forms_of_a_norm_of_weights_fit_each_other(old: Any, tmp_path: Path) -> None:
    """torch's hooks and its parametrizations keep the same tensors under other names."""
    with pytest.warns(FutureWarning, match="deprecated") if old is nn.utils.weight_norm else contextlib.nullcontext():
        first = nn.Sequential(old(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 3, 1))
    new = getattr(nn.utils.parametrizations, old.__name__)
    second = nn.Sequential(new(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 3, 1))
    image = torch.rand(1, 3, 8, 8)
    for net, other in ((first, second), (second, first)):
        torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
        for part in ("discriminator", "generator"):
            other.load_state_dict(read_weights(tmp_path / "net.pth", part=part, names=other.state_dict()).state)
            assert torch.equal(net.eval()(image), other.eval()(image))


def test_a_key_that_is_asked_for_wins_and_the_average_is_named(tmp_path: Path) -> None:
    raw, ema = networks(random.Random(0))
    torch.save({"params": raw, "params_ema": ema}, tmp_path / "net.pth")
    weights = read_weights(tmp_path / "net.pth", "params")
    assert not difference(weights.state, raw)
    assert weights.choice == "weights params, not the EMA (params_ema)"


def test_an_average_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """An object of another program, a list of other shapes, and KAIR's second file."""
    raw, ema = networks(random.Random(0))
    contents: dict[str, Any] = {
        "object": {"model": raw, "ema": nn.Identity()},
        "list": {"model": raw, "ema": {"shadow_params": list(ema.values())[1:]}},
        "500_G": raw,
    }
    save_file(ema, tmp_path / "500_E.safetensors")
    torch.save(ema, tmp_path / "500_E.pth")
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        weights = read_weights(tmp_path / f"{name}.pth")
        assert not difference(weights.state, raw)
        assert "not the EMA" in weights.choice, name


def test_two_networks_without_an_average_are_named(tmp_path: Path) -> None:
    raw, other = networks(random.Random(0))
    torch.save({"student": raw, "teacher": other}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").choice == "weights student, of student, teacher"
    torch.save({"state_dict": raw, "best_acc1": torch.tensor(3.0)}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").choice == "", "a number is no network"


def test_statistics_that_are_not_averaged_are_the_last_ones(tmp_path: Path) -> None:
    raw = {"conv.weight": torch.ones(2, 2), "norm.running_mean": torch.ones(2)}
    torch.save({"model": raw, "ema": {"conv.weight": torch.zeros(2, 2)}}, tmp_path / "net.pth")
    state = read_weights(tmp_path / "net.pth").state
    assert torch.equal(state["conv.weight"], torch.zeros(2, 2))
    assert torch.equal(state["norm.running_mean"], torch.ones(2))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.8, 1.0])
def test_interpolation_is_esrgans(alpha: float) -> None:
    first, second = (read_weights(network_file(name, scale=4)) for name in ("psnr.pth", "gan.pth"))
    second = replace(second, state={name: value * 3 + 0.1 for name, value in second.state.items()})
    mixed = interpolate(first, second, alpha)
    for name, value in mixed.state.items():  # net_interp.py of the original ESRGAN
        torch.testing.assert_close(value, (1 - alpha) * first.state[name] + alpha * second.state[name])
    share = Fraction(alpha).limit_denominator(100)
    assert mixed.notes["interpolation"] == f"{float(1 - share):g} * psnr.pth + {float(share):g} * gan.pth"


def test_an_interpolation_tells_of_which_file_it_took_the_average() -> None:
    """OLMo-core#396."""
    for name, keys in (("both.pth", ("params", "params_ema")), ("plain.pth", ("params",))):
        torch.save({key: {"w": torch.ones(1)} for key in keys}, name)
    both, plain = (read_weights(Path(name)) for name in ("both.pth", "plain.pth"))
    for first, second, said in (
        (both, plain, "0.5 * both.pth + 0.5 * plain.pth, EMA weights (params_ema) of both.pth"),
        (both, both, "0.5 * both.pth + 0.5 * both.pth, EMA weights (params_ema)"),
        (plain, plain, "0.5 * plain.pth + 0.5 * plain.pth"),
    ):
        assert interpolate(first, second, 0.5).choice == said


def test_interpolation_of_different_networks_names_what_differs() -> None:
    first, second = network_file("a.pth"), network_file("b.pth", num_feat=12)
    with pytest.raises(UserError, match=r"b.pth cannot be interpolated, .*conv_first.weight of shape \(12, 3, 3, 3\)"):
        load_network([first, second])
    with pytest.raises(UserError, match="from 0 .* to 1 .*got 1.5"):
        load_network([first, first], alpha_interp=1.5)
    with pytest.raises(UserError, match="needs two models"):
        load_network([first], alpha_interp=0.5)


class Calls:
    """Unpickling it would call ``torch.set_num_threads``, which is visible and does no harm."""

    def __reduce__(self) -> Any:
        return torch.set_num_threads, (torch.get_num_threads() + 1,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_called_for_objects_beside_the_weights(zipped: bool) -> None:
    threads = torch.get_num_threads()
    state = dict(make_network().state_dict())
    torch.save({"params": state, "extra": Calls()}, "net.pth", _use_new_zipfile_serialization=zipped)
    assert not difference(read_weights(Path("net.pth")).state, state)
    assert torch.get_num_threads() == threads


def test_a_name_that_belies_its_content_does_not_matter() -> None:
    """Iyashinouta/sd-model-downloader#11: a browser or a script gave a .safetensors file the name of a checkpoint."""
    state = {name: value.half() for name, value in make_network().state_dict().items()}
    save_file(state, "renamed.pth", metadata={"scale": "4"})
    torch.save({"params": state}, "renamed.safetensors")
    torch.save(state, "pytorch_model.bin")
    for name in ("renamed.pth", "renamed.safetensors", "pytorch_model.bin"):
        assert not difference(read_weights(Path(name)).state, {name: value.float() for name, value in state.items()})
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
        # huggingface/safetensors#601
        ({}, "expected the weights of a generator, got an empty one: copy, download or export it again"),
        # DiffBIR#144: the numbers of a generator look like weights.
        *(
            ({"optimizers": [], **numbers}, "is a training state, not a network: give models/net")
            for numbers in ({"random": [{"torch": torch.get_rng_state()}]}, {"rng_state": torch.get_rng_state()})
        ),
        ({"optimizer": optimizer({}), "epoch": 3}, "expected the weights of a generator, got a mapping with optimizer"),
        # JingyunLiang/SwinIR#28: KAIR saves it beside the network.
        (optimizer({"x": torch.ones(3)}), "is the state of an optimizer, not a network: give the network saved beside"),
        ({"params": {"layer": Harmless()}}, r"contains more than weights \(.*Harmless\)"),
        ([1, 2], "expected the weights of a generator, got list"),
        ({"fc.weight": torch.ones(2)}, "expected a super-resolution network .* got 1 tensors such as fc.weight"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b'<?xml version="1.0"?>\n<net name="Model0" version="11">', "is one of OpenVINO's two files: give the .onnx"),
        ({"base_model.model.body.0.lora_A.weight": torch.ones(2)}, "has a LoRA.*merge it into its network first"),
        # ComfyUI-GGUF#21, with scales beside them, or without.
        ({"a.weight": torch.ones(2, 2), "a.weight_scale": torch.tensor(0.1)}, "has quantised weights.*in fp16 or fp32"),
        ({"a.weight": torch.ones(2, 2, dtype=torch.int8)}, "has quantised weights.*in fp16 or fp32"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page, .* message or settings .*AccessDenied"),
        (b'{"message": "Not Found"}', 'is a web page, a server\'s message or settings \\({"message": "Not Found"}\\)'),
        (b"PK\3\4 cut off", "is damaged or not a checkpoint"),
        (b"\x1f\x8b\x08 of a download", "is compressed .gzip.: unpack it"),
        (b"7z\xbc\xaf\x27\x1c of a download", "is compressed .7-Zip.: unpack it"),
        (b"Rar! of a download", "is compressed .RAR.: unpack it"),
        (b"", "is empty: copy or download it again"),
    ],
)
def test_what_is_no_network_is_told_apart(content: object, message: str) -> None:
    path = Path("net.pth")
    with pytest.raises(UserError, match="expected a file, not its folder"):  # ComfyUI#997
        load_network([Path()])
    # huggingface/safetensors#485
    Path("hf").mkdir()
    Path("hf/model.safetensors").touch()
    os.mkfifo("pipe")
    for run in ("a", "b"):
        Path(f"runs/{run}/models").mkdir(parents=True)
    Path("runs/a/models/net_g_4.pth").touch()
    for name, told in (
        ("hf", "network there is hf/model.safetensors"),
        # fastMRI#38
        ("runs", "network there is runs/a/models/net_g_4.pth"),
        ("runs/b", "not its folder; nor is there a network in it"),
        ("pipe", "not a pipe: save it first"),
    ):
        with pytest.raises(UserError, match=told):
            load_network([Path(name)])
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as raised:
        load_network([path])
    assert "\n" not in str(raised.value)


def test_bytes_after_the_tensors_of_safetensors_are_ignored() -> None:
    """ComfyUI#15599: an intact file was called incomplete."""
    state = dict(make_network().state_dict())
    content = save(state, {"note": "own"})
    for padding in (b"", b"\0" * 8):
        Path("net.safetensors").write_bytes(content + padding)
        weights = read_weights(Path("net.safetensors"))
        assert weights.state.keys() == state.keys()
        assert all(torch.equal(weights.state[name], value) for name, value in state.items())
    deep = b'{"a":' * 100_000
    for damaged in (content[:-1], len(deep).to_bytes(8, "little") + deep + content):
        Path("net.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as safetensors.*copy it again"):
            read_weights(Path("net.safetensors"))


def test_damaged_safetensors_missing_file_and_nan() -> None:
    state = dict(make_network().state_dict())
    state["conv_hr.bias"][2] = float("nan")
    torch.save(state, "nan.pth")
    Path("net.safetensors").write_bytes(b"no such thing")
    for name, message in (("net.safetensors", "cannot be read as safetensors"), ("nowhere.pth", "no such file"),
                          ("nan.pth", "1 tensors contain NaN or infinity .conv_hr.bias")):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            load_network([Path(name)])
