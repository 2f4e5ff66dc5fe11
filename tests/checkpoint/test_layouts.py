"""The best weights in a file: layouts of the trainers that people use, drawn at random."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.errors import UserError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.networks import make_network

State = dict[str, Tensor]
SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", "0")), int(os.environ.get("FUZZ_SEED", "0"))


def draws(count: int) -> Iterator[random.Random]:
    """Random generators: ``count``, or for FUZZ_SECONDS; a failure prints its FUZZ_SEED."""
    end, seed = time.monotonic() + SECONDS, SEED
    while time.monotonic() < end if SECONDS else seed < SEED + count:
        print(f"FUZZ_SEED={seed}")
        yield random.Random(seed)
        seed += 1


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
    "ema-pytorch": lambda raw, ema: {"model": raw, "ema": {
        "initted": torch.tensor(True), "step": torch.tensor(9), **prefixed(raw, "online_model."),
        **prefixed(ema, "ema_model.")}},
    "torch_ema": lambda raw, ema: {"model": raw, "ema": {
        "decay": 0.9, "num_updates": 3, "shadow_params": list(ema.values()), "collected_params": None}},
    "AveragedModel": lambda raw, ema: {
        "model": raw, "swa_model": {"n_averaged": torch.tensor(3), **prefixed(ema, "module.")}},
}  # fmt: skip

ALONE: dict[str, Callable[[State], Any]] = {
    "bare, KAIR, accelerate": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "compiled in DDP": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "FSDP": lambda state: {"model": prefixed(state, "_fsdp_wrapped_module.")},
    "mmagic": lambda state: {"state_dict": {**prefixed(state, "generator."), "data_preprocessor.mean": torch.ones(3)}},
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "optimizer_states": [optimizer(state)]},
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
    """Save as a trainer does: wrapped once more, in fp16, or with objects beside the weights."""
    if rng.random() < 0.3 and isinstance(content, dict):
        content = {**content, "args": {"lr": 1e-4}, "config": Path("x")}
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.8)


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


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
        assert same(weights.state, ema), f"{layout}: {weights.choice or 'nothing said'}"
        assert weights.choice.startswith("EMA weights")
        assert "EMA weights" in load_network([tmp_path / "net.pth"]).title


@pytest.mark.parametrize("layout", ALONE)
def test_the_only_weights_are_taken(layout: str, tmp_path: Path) -> None:
    for rng in draws(2):
        state, _ = networks(rng)
        write(ALONE[layout](state), tmp_path / "net.pth", rng)
        assert same(read_weights(tmp_path / "net.pth").state, state)


def test_a_key_that_is_asked_for_wins_and_the_average_is_named(tmp_path: Path) -> None:
    raw, ema = networks(random.Random(0))
    torch.save({"params": raw, "params_ema": ema}, tmp_path / "net.pth")
    weights = read_weights(tmp_path / "net.pth", "params")
    assert same(weights.state, raw)
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
        assert same(weights.state, raw)
        assert "not the EMA" in weights.choice, name


def test_two_networks_without_an_average_are_named(tmp_path: Path) -> None:
    raw, other = networks(random.Random(0))
    torch.save({"student": raw, "teacher": other}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").choice == "weights student, of student, teacher"


def test_statistics_that_are_not_averaged_are_the_last_ones(tmp_path: Path) -> None:
    raw = {"conv.weight": torch.ones(2, 2), "norm.running_mean": torch.ones(2)}
    torch.save({"model": raw, "ema": {"conv.weight": torch.zeros(2, 2)}}, tmp_path / "net.pth")
    state = read_weights(tmp_path / "net.pth").state
    assert torch.equal(state["conv.weight"], torch.zeros(2, 2))
    assert torch.equal(state["norm.running_mean"], torch.ones(2))


def test_an_optimizer_alone_is_no_network(tmp_path: Path) -> None:
    raw, _ = networks(random.Random(0))
    torch.save({"optimizer": optimizer(raw), "epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="expected the weights of a generator, got a mapping with optimizer"):
        read_weights(tmp_path / "net.pth")
