"""Architecture, size and scale from the weights alone; the oracle for foreign names is spandrel, as in chaiNNer."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_basicsr.archs.open_network import load_network, open_network
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.deploy.export import export_network
from dp_basicsr.errors import UserError, message_for_user

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.swinir_arch import SwinIR
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel
from spandrel import ModelLoader
from torch import Tensor, nn

from tests.support.networks import make_network, network_file, small_opened, swinir
from tests.support.options import model_options

State = dict[str, Tensor]
IMAGE = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("arch", "scale", "growth"),
    [
        ("RRDBNetDP", 2, 8), ("RRDBNetDP", 3, 8), ("RRDBNetDP", 4, 8), ("RRDBNetDP", 4, 32),
        ("RRDBNet", 1, 8), ("RRDBNet", 2, 8), ("MSRResNet", 2, 0), ("MSRResNet", 3, 0), ("MSRResNet", 4, 0),
    ],
)  # fmt: skip
def test_spec_is_found_and_the_function_is_the_same(arch: str, scale: int, growth: int) -> None:
    net = make_network(arch, scale, num_grow_ch=growth)
    loaded = small_opened(arch, scale, num_grow_ch=growth)
    assert (loaded.arch, loaded.scale, loaded.channels) == (arch, scale, 3)
    assert loaded.arguments == {"num_feat": 8, "num_block": 2, **({"num_grow_ch": growth} if growth else {})}
    assert loaded.size.multiple == ({1: 4, 2: 2}[scale] if arch == "RRDBNet" else 1)
    assert not loaded.module.training
    assert torch.equal(loaded.module(IMAGE), net(IMAGE))
    assert loaded.module(IMAGE).shape == (2, 3, 8 * scale, 12 * scale)


def test_weights_of_bf16_compute_in_fp32(tmp_path: Path) -> None:
    """stable-diffusion.cpp#55: "unsupported ScalarType BFloat16"."""
    net = make_network("MSRResNet", 4)
    rounded = {name: value.bfloat16() for name, value in net.state_dict().items()}
    torch.save(rounded, tmp_path / "net.pth")
    net.load_state_dict(rounded)
    assert torch.equal(load_network([tmp_path / "net.pth"]).module(IMAGE), net(IMAGE))


def test_x2_or_x3_is_asked_for_unless_something_tells() -> None:
    path = network_file(scale=3)
    with pytest.raises(UserError, match="neither the file nor an option file .* give --scale 2 or --scale 3"):
        load_network([path])
    assert load_network([path], scale=2).scale == 2
    Path("run/models").mkdir(parents=True)
    options = "{name: x3, model_type: M, scale: 3, num_gpu: 0, datasets: {}, network_g: {type: RRDBNetDP, scale: 3}}"
    Path("run/train.yml").write_text(options)
    assert load_network([path.rename("run/models/net_g_500.pth")]).scale == 3


def test_a_network_that_its_run_alone_knows_opens_beside_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    """EDSR-PyTorch#8, mseitzer/srgan#9: BasicSR's EDSR trains, and spandrel does not know its names."""
    sizes = "num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 8"
    options = f"{{name: e, model_type: M, scale: 8, datasets: {{}}, network_g: {{type: EDSR, {sizes}}}}}"
    Path("run/models").mkdir(parents=True)
    Path("run/train.yml").write_text(options)
    net, file = EDSR(3, 3, num_feat=4, num_block=1, upscale=8), Path("run/models/net_g_5.pth")
    torch.save({"params": net.state_dict()}, file)
    opened = load_network([file])
    assert (opened.description, opened.scale, opened.channels) == ("EDSR x8", 8, 3)
    with torch.no_grad():
        assert torch.equal(opened.module(IMAGE), net(IMAGE))
    for name in ("e.pth", "e.safetensors"):
        with pytest.raises(UserError, match="EDSR can be opened beside the options of its run alone: export"):
            export_network(opened, name.partition(".")[2], Path(name), {})
    for other in (options.replace("num_feat: 4", "num_feat: 8"), options.replace("EDSR", "Unknown")):
        Path("run/train.yml").write_text(other)
        message = r"this project or spandrel [\d.]+ knows.*a newer spandrel.*; the options of its run name "
        with pytest.raises(UserError, match=rf"{message}(EDSR|Unknown)$"):
            load_network([file])
    assert capsys.readouterr().out == "", "BasicSR prints what it does not find"


def test_numbers_that_are_in_no_tensor_are_those_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """mace#1415: spandrel takes every SwinIR to have an img_range of 1."""
    caplog.set_level("INFO", logger="basicsr")
    sizes: dict[str, Any] = {
        "img_size": 8,
        "window_size": 4,
        "depths": [2],
        "embed_dim": 8,
        "num_heads": [2],
        "upscale": 2,
    }
    sizes["upsampler"] = "pixelshuffle"
    file = Path("run/models/net_g_5.pth")
    file.parent.mkdir(parents=True)
    for img_range, description in ((255.0, "SwinIR x2"), (1.0, "SwinIR x2 (small, s8w4, 64nf, 8dim, 1conv, 1unshuf)")):
        network = {"type": "SwinIR", "img_range": img_range, **sizes}
        options = {"name": "s", "model_type": "M", "scale": 2, "datasets": {}, "network_g": network}
        Path("run/options.json").write_text(json.dumps(options))
        net = SwinIR(img_range=img_range, **sizes).eval()
        torch.save({"params": net.state_dict()}, file)
        opened = load_network([file])
        assert opened.description == description
        with torch.no_grad():
            assert torch.equal(opened.module(IMAGE), net(IMAGE))
        # A run that continues training this file has its network, and one that names itself ends.
        for folder, source in (("next", file), ("itself", Path("itself/models/net_g_5.pth"))):
            Path(folder, "models").mkdir(parents=True, exist_ok=True)
            options["network_g"] = {"type": "FromFile", "path": str(source)}
            Path(folder, "options.json").write_text(json.dumps(options))
            continued = load_network([Path(shutil.copy(file, f"{folder}/models/net_g_5.pth"))]).description
            assert continued == (
                description if folder == "next" else "SwinIR x2 (small, s8w4, 64nf, 8dim, 1conv, 1unshuf)"
            )
        assert "network_g: " not in caplog.text
        if img_range != 1:
            with pytest.raises(UserError, match="SwinIR can be opened beside the options of its run alone: export"):
                export_network(opened, "pth", Path("s.pth"), {})
    # Of a run on gray, pytorch-CycleGAN-and-pix2pix#1142; spandrel does not open one of a single window.
    for window in (4, 8):
        sizes |= {"in_chans": 1, "img_range": 255.0, "window_size": window}
        Path("run/options.json").write_text(json.dumps({**options, "network_g": {"type": "SwinIR", **sizes}}))
        net = SwinIR(**sizes).eval()
        torch.save({"params": net.state_dict()}, file)
        opened = load_network([file])
        assert opened.channels == 1
        with torch.no_grad():
            image = torch.rand(1, 1, 16, 16)
            assert torch.equal(opened.module(image), net(image))


@pytest.mark.parametrize("arch", [EDSR, SwinIR])
def test_a_checkpoint_is_opened_as_trained_wherever_it_is(
    arch: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its options are in it, and in those of a run that continues from it; BasicSR and spandrel read it as before.

    EDSR-PyTorch#290: options of a test, or of a further run, that contradict them are told.
    """
    settings: dict[str, Any] = {"num_feat": 4, "num_block": 1, "num_in_ch": 3, "num_out_ch": 3}
    if arch is SwinIR:
        settings = {"img_size": 8, "window_size": 4, "depths": [2], "embed_dim": 8, "num_heads": [2]}
        settings["upsampler"] = "pixelshuffle"
    opt = model_options("PSNRModel", tmp_path / "models", perceptual_opt=None, gan_opt=None)
    opt["network_g"] = trained = {"type": arch.__name__, "upscale": 4, "img_range": 128.0, **settings}
    for name in ("first.pth", "next.pth"):
        model = build_model(opt)
        model.save(0, -1)
        file = (tmp_path / "models/net_g_latest.pth").rename(tmp_path / name)
        net = model.net_g.eval()
        with torch.no_grad():
            assert torch.equal(load_network([file]).module(IMAGE), net(IMAGE))
        of_basicsr = SRModel.__new__(SRModel)
        of_basicsr.is_train = True  # its method may be the one that our programs put there
        of_basicsr.load_network(net, str(file), True, "params")
        opt["network_g"] = {"type": "FromFile", "path": str(file)}
    opt["path"]["pretrain_network_g"] = str(file)
    build_model(opt)  # whose file is another one than that of its training
    for img_range, is_told in ((128, False), (64, True)):
        build_model(opt | {"network_g": trained | {"img_range": img_range}, "is_train": img_range == 128})
        assert ("img_range 64 (128.0 there)" in caplog.text) == ("not that of its training" in caplog.text) == is_told
    if arch is SwinIR:
        assert ModelLoader().load_from_file(file).architecture.id == "SwinIR"


def test_the_package_of_networks_with_other_licences_is_used_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """stable-diffusion-webui#15167; EDSR-PyTorch#278: of a class that no package here has."""
    torch.save({"block.weight": torch.zeros(3, 3)}, "net.pth")
    added: list[bool] = []
    package = SimpleNamespace(install=lambda ignore_duplicates: added.append(ignore_duplicates))
    for there in (None, package):
        monkeypatch.setitem(sys.modules, "spandrel_extra_arches", there)
        message = "spandrel_extra_arches adds SRFormer and others, and `.*test OPTIONS --import MODULE` upscales"
        with pytest.raises(UserError, match=message):
            load_network([Path("net.pth")])
    assert set(added) == {True}


def test_a_spandrel_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """spandrel#203: before 0.3 an architecture was text, whose ``name`` was a traceback."""
    torch.save({"block.weight": torch.zeros(3, 3)}, "net.pth")
    monkeypatch.delattr("spandrel.Architecture")
    with pytest.raises(ImportError) as raised:
        load_network([Path("net.pth")])
    assert str(message_for_user(raised.value)).endswith(": pip install --upgrade --force-reinstall spandrel")


def test_a_scale_that_contradicts_the_weights_is_refused() -> None:
    with pytest.raises(UserError, match="--scale 2: .* is RRDBNetDP x4 .*; the size of the result is --outscale"):
        load_network([network_file(scale=4)], scale=2)


def test_a_discriminator_and_four_channels_are_refused_and_a_gray_network_opens() -> None:
    torch.save({"params": {"conv0_0.weight": torch.ones(4, 3, 3, 3), "linear2.weight": torch.ones(1, 9)}}, "net_d.pth")
    with pytest.raises(UserError, match="expected a super-resolution network .* it looks like a discriminator: give "):
        load_network([Path("net_d.pth")])
    torch.save(RRDBNet(4, 4, scale=4, num_feat=4, num_block=1, num_grow_ch=4).state_dict(), "four.pth")
    with pytest.raises(UserError, match="expected a network for RGB or gray, got RRDBNetDP x4 for 4 channels"):
        load_network([Path("four.pth")])
    gray = RRDBNet(1, 1, scale=4, num_feat=4, num_block=1, num_grow_ch=4)
    torch.save(gray.state_dict(), "gray.pth")
    opened = load_network([Path("gray.pth")])
    assert opened.channels == 1
    with torch.no_grad():
        assert torch.equal(opened.module(IMAGE[:, :1]), gray(IMAGE[:, :1]))


def esrgan_names(state: State) -> State:
    """BasicSR's names as the original ESRGAN code called them."""
    pairs = [("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), (".rdb", ".RDB"), ("conv_up", "upconv"),
             ("conv_hr", "HRconv")]  # fmt: skip
    return {reduce(lambda name, pair: name.replace(*pair), pairs, name): value for name, value in state.items()}


def oldest_names(state: State) -> State:
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


@pytest.mark.parametrize("names", [esrgan_names, oldest_names])
@pytest.mark.parametrize("scale", [2, 4])
def test_original_esrgan_files_give_the_pixels_that_spandrel_gives(names: Callable[[State], State], scale: int) -> None:
    spandrel = pytest.importorskip("spandrel")
    torch.save(names(make_network(scale=scale).state_dict()), "old.pth")
    theirs = spandrel.ModelLoader().load_from_file("old.pth")
    ours = load_network([Path("old.pth")], scale=None if scale == 4 else 2)
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
    assert opened.module(IMAGE).shape == (2, 3, 8 * scale, 12 * scale)


def old_with(shape: tuple[int, ...] | None, name: str) -> State:
    """ESRGAN of 2018 with a tensor of another shape, or without what comes after it."""
    state = oldest_names(make_network(scale=4).state_dict())
    if shape is None:
        names = list(state)
        return {key: state[key] for key in names[: names.index(name)]}
    return state | {name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            make_network().state_dict() | {"conv_first.weight": torch.ones(8)},
            "damaged, incomplete or of another version: spandrel cannot",
        ),
        (
            old_with((0, 8, 3, 3), "model.10.weight"),
            r"damaged, incomplete or of another version: spandrel cannot build it .*; .*test OPTIONS --import MODULE",
        ),
        (old_with(None, "model.3.weight"), "damaged, incomplete or of another version: .*KeyError: 'model.1.weight'"),
        (
            old_with(None, "model.10.weight"),
            "maps an image to one of as many channels, got ESRGAN x2 from 3 channels to 8",
        ),
        (old_with(None, "model.1.sub.0.RDB1.conv1.0.weight"), "expected a super-resolution network"),
        (make_network(scale=2, num_grow_ch=4).state_dict() | {"conv_last.weight": torch.ones(0, 8, 3, 3)}, "damaged"),
    ],
)
def test_old_files_that_are_damaged_or_too_short_are_named(content: State, message: str) -> None:
    torch.save(content, "old.pth")
    with pytest.raises(UserError, match=message):
        load_network([Path("old.pth")])


def test_numbers_beside_the_weights_of_another_version_are_left_out() -> None:
    """CLAP#127: position_ids of an older library, and what thop counted."""
    state = swinir().state_dict()
    counts = {"norm.total_ops": torch.zeros(1, dtype=torch.float64), "position_ids": torch.arange(77)[None]}
    for name, content in (("plain.pth", state), ("more.pth", state | counts), ("other.pth", state | {"a.w": IMAGE})):
        torch.save({"params": content}, name)
    plain, more = load_network("plain.pth"), load_network("more.pth")
    assert torch.equal(plain.module(IMAGE), more.module(IMAGE))
    with pytest.raises(UserError, match=r"cannot build it .*Unexpected key.*a\.w"):  # a layer more
        load_network("other.pth")


def test_a_network_that_needs_a_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As LaMa's, whose file has 200 MB."""
    spandrel = pytest.importorskip("spandrel")
    lama = SimpleNamespace(architecture=SimpleNamespace(name="LaMa"), purpose="Inpainting")
    monkeypatch.setattr(spandrel.MAIN_REGISTRY, "load", lambda _: lama)
    torch.save({"generator.model.1.bn_l.running_mean": torch.ones(8)}, "big-lama.pth")
    with pytest.raises(UserError, match="got LaMa for inpainting, which needs a mask beside it"):
        load_network([Path("big-lama.pth")])


def test_a_mismatch_names_keys_and_shapes_in_one_message() -> None:
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


def test_a_network_leaves_its_image_as_it_is() -> None:
    """RCAN multiplies it in place: its second run differed, so no export and no engine gave the values of the first."""
    from spandrel.architectures.RCAN import RCAN

    torch.manual_seed(0)
    torch.save(RCAN(n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4, scale=2).state_dict(), "net.pth")
    network, image = load_network([Path("net.pth")]), torch.rand(1, 3, 16, 16)
    before = image.clone()
    first = network.module(image)
    assert torch.equal(image, before)
    assert torch.equal(network.module(image), first)


def test_what_is_opened_otherwise_is_said() -> None:
    """Restormer#123, with a module of one's own in a known network; icefall#810."""
    Path("run/models").mkdir(parents=True)
    Path("run/train.yml").write_text("{name: run, model_type: M, datasets: {}, network_g: {type: Mine}}")
    net = RRDBNet(3, 3, scale=4, num_feat=4, num_block=1, num_grow_ch=4)
    torch.save({"params": {**net.state_dict(), "mine.weight": torch.ones(4)}}, "run/models/net_g_5.pth")
    with pytest.raises(UserError, match="its run name Mine; .*test OPTIONS --import MODULE` upscales with a class"):
        load_network("run/models/net_g_5.pth")
    parts = {f"sr.{name}": value for name, value in net.state_dict().items()} | {"refine.weight": torch.ones(4)}
    torch.save({"params": parts}, "run/models/net_g_5.pth")
    with pytest.raises(UserError, match="its run name Mine$"):
        load_network("run/models/net_g_5.pth")
    with pytest.raises(UserError, match="two to interpolate; got 3; to average three, export two with .*0.3333"):
        load_network(["1.pth", "2.pth", "3.pth"])
