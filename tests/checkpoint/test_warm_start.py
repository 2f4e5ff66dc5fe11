"""Runs that start from weights in every published format, and that train any network of a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from dp_basicsr import train
from dp_basicsr.archs import FromFile, RRDBNetDP, load_network
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.errors import UserError

import cv2
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from safetensors.torch import save_file
from torch import Tensor

from scripts import export_model
from tests.support.options import SMALL
from tests.support.programs import logs_of, same_weights

State = dict[str, Tensor]


def as_2018(state: State) -> State:
    """The names of the original ESRGAN code."""
    for ours, theirs in (("body.0.rdb", "RRDB_trunk.0.RDB"), ("conv_body", "trunk_conv"), ("conv_up", "upconv"),
                         ("conv_hr", "HRconv")):  # fmt: skip
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


SAVED: dict[str, Callable[[State], None]] = {
    "params_ema alone": lambda state: torch.save({"params_ema": state}, "given"),
    "names of 2018": lambda state: torch.save(as_2018(state), "given"),
    "fp16": lambda state: torch.save({"params": {name: value.half() for name, value in state.items()}}, "given"),
    "safetensors": lambda state: save_file(state, "given"),
}


@pytest.fixture
def state() -> State:
    torch.manual_seed(1)
    net = RRDBNetDP(3, 3, scale=4, num_feat=8, num_block=1, num_grow_ch=4)
    return {name: value.half().float() for name, value in net.state_dict().items()}  # the same in fp16


def trained(pairs: Path, *entries: str) -> State:
    """Train one iteration with a learning rate near 0; return the generator, i.e. what it started from."""
    Path("small.yml").write_text(SMALL)
    train.main(["-opt", "small.yml", "--force_yml", "train:total_iter=1", "train:scheduler:milestones=[1]",
                "train:optim_g:lr=1e-30", "val=~", "datasets:train:num_worker_per_gpu=0", *entries])  # fmt: skip
    return read_weights(Path("experiments/small/models/net_g_latest.pth"), "params").state


@pytest.mark.parametrize(
    ("form", "model"),
    [*((form, "ESRGANDPModel") for form in SAVED), ("safetensors", "SRModel"), ("names of 2018", "SRModel")],
)
def test_a_run_starts_from_any_form(form: str, model: str, state: State, pairs: Path) -> None:
    """Also with a model of BasicSR's, which loads one form (stable-diffusion-webui#15640)."""
    SAVED[form](state)
    ema = 0.9 if form in ("params_ema alone", "names of 2018") else 0
    entries = [f"model_type={model}", "path:pretrain_network_g=given", f"train:ema_decay={ema}"]
    started = trained(pairs, *entries)
    assert started.keys() == state.keys()
    assert all(torch.allclose(started[name], value, rtol=0, atol=1e-20) for name, value in state.items())


def test_weights_that_are_not_finite_are_refused(state: State, pairs: Path, capsys: pytest.CaptureFixture) -> None:
    state["conv_first.bias"][0] = torch.nan
    torch.save({"params": state}, "given.pth")
    with pytest.raises(SystemExit, match="2"):
        trained(pairs, "path:pretrain_network_g=given.pth")
    assert re.search(r"given\.pth.*NaN", capsys.readouterr().err)
    assert not Path("experiments/small").exists()


def spandrel_network(name: str) -> torch.nn.Module:
    """A small network of spandrel's own class."""
    small: dict[str, tuple[str, str, dict[str, Any]]] = {
        "SPAN": ("SPAN.__arch.span", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16}),
        "SwinIR": ("SwinIR.__arch.SwinIR", "SwinIR", {
            "img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8,
            "upsampler": "pixelshuffle"}),
        "HAT": ("HAT.__arch.HAT", "HAT", {
            "img_size": 16, "embed_dim": 36, "depths": [2], "num_heads": [2], "window_size": 8,
            "upsampler": "pixelshuffle"}),
        "DAT": ("DAT.__arch.DAT", "DAT", {
            "img_size": 16, "embed_dim": 32, "depth": [2], "num_heads": [2], "split_size": [4, 4],
            "expansion_factor": 2, "upsampler": "pixelshuffle"}),
        "Compact": ("Compact.__arch.SRVGG", "SRVGGNetCompact", {"num_feat": 8, "num_conv": 2}),
        "ESRGAN": ("ESRGAN.__arch.RRDB", "RRDBNet", {"num_filters": 8, "num_blocks": 1, "scale": 4}),
        "RCAN": ("RCAN", "RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 4, "scale": 4}),
    }  # fmt: skip
    module, kind, options = small[name]
    options = options if "scale" in options else {**options, "upscale": 4}
    torch.manual_seed(0)
    return getattr(import_module(f"spandrel.architectures.{module}"), kind)(**options)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["SPAN", "Compact", "HAT", "DAT", "ESRGAN", "RCAN"])
def test_any_network_of_a_file_can_be_trained_and_reopened(name: str) -> None:
    """Spandrel opens the result and gives the same pixels."""
    from spandrel import ModelLoader

    torch.save(spandrel_network(name).state_dict(), "community.pth")
    net = FromFile("community.pth", scale=4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.rand(2, 3, 16, 16)
    net(x).square().mean().backward()
    torch.optim.Adam(net.parameters(), lr=1e-3).step()
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    torch.save(net.state_dict(), "trained.pth")
    theirs, opened = ModelLoader().load_from_file("trained.pth").eval(), load_network([Path("trained.pth")])
    with torch.no_grad():
        torch.testing.assert_close(opened.module(x).clamp(0, 1), theirs(x), rtol=0, atol=1e-6)


def test_the_way_with_gray_images_and_another_scale_is_said() -> None:
    """SwinIR#169, stylegan3#635; the message had a network xNone."""
    torch.save(spandrel_network("SPAN").state_dict(), "rgb.pth")
    with pytest.raises(
        UserError, match="expected a network for images of 1 channels.* on gray, one for 1 channel trains"
    ):
        FromFile("rgb.pth", num_in_ch=1)
    with pytest.raises(
        UserError, match="for 3 channels; CompactDP has any .*--outscale 3` resizes the results of this one$"
    ):
        FromFile("rgb.pth", scale=3)


def test_a_network_of_a_file_supports_everything_a_run_does(pairs: Path) -> None:
    """Check, EMA, validation, bit-exact resume, and export for spandrel."""
    from spandrel import ModelLoader

    torch.save(spandrel_network("SwinIR").state_dict(), "community.pth")
    start = read_weights(Path("community.pth")).state
    Path("small.yml").write_text(SMALL)
    options = ["-opt", "small.yml", "--force_yml", "network_g={type: FromFile, path: community.pth}",
               "train:total_iter=4", "train:scheduler:milestones=[3]", "logger:save_checkpoint_freq=2",
               "val:val_freq=2", "logger:use_tb_logger=false", "datasets:train:num_worker_per_gpu=0"]  # fmt: skip
    train.main([*options, "--check"])
    assert not Path("experiments").exists()
    train.main(options)
    whole = Path("experiments/small/models/net_g_latest.pth").rename("whole.pth")
    Path("experiments/small/training_states/4.state").unlink()
    Path("experiments/small/training_states/4.sha256").unlink()
    # gpt-2-simple#13: the next round of fine-tuning moves the run whose network it starts from.
    Path("community.pth").unlink()
    train.main([*options, "--auto_resume", "--check"])
    train.main([*options, "--auto_resume"])
    logs = logs_of()
    assert "Resuming training from epoch: 0, iter: 2" in logs
    assert logs.count("# psnr_rgb: ") > 2
    saved = Path("experiments/small/models/net_g_latest.pth")
    assert same_weights(whole, saved)
    ema, net = (read_weights(saved, key).state for key in ("params_ema", "params"))
    assert net.keys() == start.keys()
    assert any(not torch.equal(ema[key], net[key]) for key in net)
    assert any(not torch.equal(start[key], net[key]) for key in net)

    assert export_model.main(["--model_path", str(saved), "--format", "safetensors", "-o", "out.safetensors"]) == 0
    theirs = ModelLoader().load_from_file("out.safetensors").eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_network([saved]).module(x).clamp(0, 1), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("arch", "scale"), [("RRDBNetDP", 2), ("RRDBNetDP", 3), ("MSRResNet", 3), ("CompactDP", 2)])
def test_the_recipe_for_another_scale_loads_what_fits_and_names_the_rest(arch: str, scale: int, pairs: Path) -> None:
    """The options of docs/finetuning.md, with the paths, scale and size of a small network."""
    page = (Path(train.__file__).parents[1] / "docs/finetuning.md").read_text(encoding="utf-8")
    recipe = page.partition("## Another scale")[2].partition("\n## ")[0]
    options = dict(re.findall(r"(path:\w+)=(\S+)", recipe))
    assert options["path:strict_load_g"] == "false"
    sizes: dict[str, Any] = {"num_feat": 8} | ({"num_conv": 2} if arch == "CompactDP" else {"num_block": 1})
    sizes |= {"num_grow_ch": 4} if arch == "RRDBNetDP" else {}
    key = "scale" if arch == "RRDBNetDP" else "upscale"
    before = ARCH_REGISTRY.get(arch)(num_in_ch=3, num_out_ch=3, **{key: 4}, **sizes).state_dict()
    torch.save({"params": before}, options["path:pretrain_network_g"])
    for file in (pairs / "GT").iterdir():
        image = cv2.imread(str(file))[:144]
        cv2.imwrite(str(file), image)
        cv2.imwrite(str(pairs / "LRbicx4" / file.name), cv2.resize(image, (144 // scale, 144 // scale)))
    network = {"type": arch, key: scale, "num_in_ch": 3, "num_out_ch": 3, **sizes}
    after = trained(pairs, *(f"{name}={value}" for name, value in options.items()), f"scale={scale}",
                    f"network_g={network}", "datasets:train:gt_size=48", "train:ema_decay=0")  # fmt: skip
    same = {name for name, value in after.items() if name in before and value.shape == before[name].shape}
    assert same
    assert all(torch.allclose(after[name], before[name], rtol=0, atol=1e-20) for name in same)
    log = logs_of()
    assert f"{len(same)} of {len(after)} tensors of {arch} are loaded" in log
    assert all(name in log for name in list(before.keys() ^ after.keys())[:2])
