"""Exports, opened by those who will open them: spandrel (chaiNNer, ComfyUI), onnxruntime, BasicSR."""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dp_basicsr import inference
from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.commands.export import parse
from dp_basicsr.deploy import export
from dp_basicsr.deploy.engine import try_room
from dp_basicsr.deploy.export import CHECK_SIZES, describe, export_network
from dp_basicsr.deploy.onnx_engine import OnnxEngine
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.torch_engine import difference_from_torch
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from PIL import Image

from scripts import export_model
from tests.support.gpu import on_device
from tests.support.images import noise, write_noise
from tests.support.networks import network_file, small_opened
from tests.support.programs import code_of

IMAGE = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(9))
EVERY = [
    ("RRDBNetDP", 4, 32), ("RRDBNetDP", 2, 32), ("RRDBNetDP", 3, 32), ("RRDBNetDP", 4, 16),
    ("RRDBNet", 2, 32), ("RRDBNet", 1, 32), ("MSRResNet", 4, 0),
]  # fmt: skip


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(("arch", "scale", "growth"), EVERY)
def test_spandrel_gives_the_same_pixels_or_the_limit_is_told(arch: str, scale: int, growth: int, kind: str) -> None:
    spandrel = pytest.importorskip("spandrel")
    network = small_opened(arch, scale, num_grow_ch=growth)
    assert export_network(network, kind, Path(f"out.{kind}"), describe(network, {})) == 0
    assert load_network([Path(f"out.{kind}")]).scale == scale, "x3 is known again without being told"
    limit = export.limit_elsewhere(network, kind, "out")
    assert (limit is None) == (arch != "MSRResNet" and growth == 32 and (arch, scale) != ("RRDBNetDP", 3))
    try:
        theirs = spandrel.ModelLoader().load_from_file(f"out.{kind}")
        result = on_device(theirs.model)(on_device(IMAGE))
    except (spandrel.UnsupportedModelError, RuntimeError):
        assert limit is not None
        return
    if limit is not None:  # what it opens all the same is not the network: it does not know x3
        assert theirs.scale != scale
        return
    assert theirs.scale == scale
    assert theirs.architecture.id == "ESRGAN"
    difference = (result - on_device(network.module)(on_device(IMAGE))).abs().max()
    print(f"{arch} x{scale} {kind}: spandrel differs by {difference:.1e}")
    assert difference < 1e-6


@pytest.mark.parametrize(("arch", "scale"), [("RRDBNet", 2), ("MSRResNet", 3)])
def test_onnxruntime_gives_the_same_pixels_at_any_size(arch: str, scale: int) -> None:
    pytest.importorskip("onnxscript")
    network = small_opened(arch, scale, num_block=1)
    facts = describe(network, {"source": "trained.pth"})
    assert export_network(network, "onnx", Path("out.onnx"), facts) < 2e-6
    again = open_engine([Path("out.onnx")])
    assert (again.network.scale, again.network.size) == (scale, network.size)
    assert facts.items() <= again.network.notes.items()
    for shape in ((1, 3, 2, 6), (3, 3, 26, 22), (1, 3, 8 + network.size.multiple, 34)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        result = torch.from_numpy(again.run(image.numpy()))
        torch.testing.assert_close(result, network.module(image), rtol=0, atol=1e-5)
    write_noise("in.png", 35, 41)
    for model in ("out.onnx", "net.pth"):
        assert inference.main(["-i", "in.png", "-o", f"{model}.png", "--model_path", model, "--tile", "32"]) == 0
    first, second = (np.asarray(Image.open(f"{model}.png")).astype(int) for model in ("out.onnx", "net.pth"))
    assert first.shape == (35 * scale, 41 * scale, 3)
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_half_precision_halves_the_file_and_opens_everywhere(kind: str) -> None:
    spandrel = pytest.importorskip("spandrel")
    network = small_opened()
    assert export_network(network, kind, Path(f"out.{kind}"), describe(network, {}), half=True) == 0
    assert Path(f"out.{kind}").stat().st_size < 0.6 * Path("net.pth").stat().st_size
    ours, theirs = load_network([Path(f"out.{kind}")]), spandrel.ModelLoader().load_from_file(f"out.{kind}")
    assert torch.equal(ours.module(IMAGE), theirs.model.float()(IMAGE))
    torch.testing.assert_close(ours.module(IMAGE), network.module(IMAGE), rtol=0, atol=1e-3)
    network.module.conv_last.bias += 1e5
    with pytest.raises(UserError, match="--half: some weights are beyond the range of fp16"):
        export_network(network, kind, Path("again"), {}, half=True)


def test_onnx_in_half_precision_is_opened_and_values_beyond_it_are_told() -> None:
    pytest.importorskip("onnxscript")
    network = small_opened("MSRResNet", 3, num_block=1)
    assert 1e-5 < export_network(network, "onnx", Path("out.onnx"), describe(network, {}), half=True) < 3e-3
    result = open_engine([Path("out.onnx")], engine="onnxruntime")(IMAGE.numpy())
    assert np.abs(result - network.module(IMAGE).numpy()).max() < 3e-3
    for layer in (network.module.conv_first, network.module.upconv1):
        for value in layer.parameters():
            value.data *= 1e4
    with pytest.raises(UserError, match=r"values exceed the range of fp16 \(65504\): export it without --half"):
        export_network(network, "onnx", Path("out.onnx"), {}, half=True)


def test_basicsr_loads_the_pth_strictly_and_it_holds_nothing_else() -> None:
    network = small_opened()
    export_network(network, "pth", Path("out.pth"), describe(network, {"source": "trained.pth"}))
    content = torch.load("out.pth", weights_only=True)
    net = RRDBNet(3, 3, scale=4, num_feat=8, num_block=2, num_grow_ch=32).eval()
    net.load_state_dict(content.pop("params"), strict=True)
    assert torch.equal(net(IMAGE), network.module(IMAGE))
    assert all(isinstance(value, (str, int)) for value in content.values())
    assert (content["scale"], content["arch"], content["source"]) == (4, "RRDBNetDP", "trained.pth")


def test_an_export_that_differs_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_opened()
    monkeypatch.setattr(export, "_save_weights", lambda *_: float("nan"))
    with pytest.raises(UserError, match="differs from the network by nan; nothing was written"):
        export_network(network, "pth", Path("out/out.pth"), {})
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "stops"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EOPNOTSUPP, False), (errno.EINVAL, False)],
)
def test_only_a_disk_without_room_stops_an_export(number: int, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that reserve nothing, as ZFS, say so by an error too."""

    def reserve(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve, raising=False)
    with pytest.raises(OSError, match=os.strerror(number)) if stops else nullcontext():
        try_room(small_opened(), ".")


class Windowed(torch.nn.Module):
    """Its result depends on H and W as Python's numbers, which the exporter takes for constants, as of windows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linspace(0, 1, int(x.shape[2]))[:, None] * 0

    size = InputSize(multiple=8, step=8)


def test_a_network_that_onnx_holds_at_one_size_is_exported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """SwinIR#145: exporters take the number of windows for a constant."""
    pytest.importorskip("onnxscript")
    network = OpenedNetwork("net.pth", "Test", 1, "Test x1", size=Windowed.size, module=Windowed())
    assert export_network(network, "onnx", Path("out.onnx"), describe(network, {})) < 1e-6
    side = network.size.maximum
    assert side == export.FIXED_SIDE
    assert f"{side} x {side} pixels alone" in str(export.limit_elsewhere(network, "onnx", "out"))
    engine = open_engine([Path("out.onnx")])
    assert engine.network.size == network.size
    for height, width in ((20, 200), (side, side)):
        pixels = noise(height, width, 3)
        assert np.array_equal(Upscaler(engine)(pixels), pixels)
    monkeypatch.setattr(OnnxEngine, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("no such operator\n...")))
    with pytest.raises(UserError, match=r"onnx cannot be run \(no such operator\); nothing was written; export it as"):
        export_network(small_opened("MSRResNet", 2), "onnx", Path("out/out.onnx"), {})
    assert list(Path("out").iterdir()) == []


def test_a_network_that_writes_its_weights_in_each_pass_is_exported() -> None:
    """SPAN: torch's exporter ended with a segmentation fault."""
    pytest.importorskip("onnxscript")
    span = importlib.import_module("spandrel.architectures.SPAN.__arch.span")
    torch.save(span.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict(), "span.pth")
    network = load_network([Path("span.pth")])
    assert export_network(network, "onnx", Path("span.onnx"), {}) < 1e-6
    # Refused as beyond the range of fp16, because the written weights were not those computed anew.
    assert export_network(network, "safetensors", Path("span.safetensors"), describe(network, {}), half=True) == 0
    again = pickle.loads(pickle.dumps(network.module))  # a page hands it to other processes
    before = again(IMAGE)
    again.load_state_dict({name: value / 2 for name, value in again.state_dict().items()})
    assert not torch.allclose(again(IMAGE), before), "a network that is trained further has its new weights"


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("name", "size"),
    [("RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 4, "scale": 2}),
     ("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 8, 8, 8], "nb": 2}),
     ("MMRealSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "num_grow_ch": 8,
                   "num_feats": [8] * 4, "num_blocks": [1] * 4})],
)  # fmt: skip
def test_a_network_that_spandrel_must_call_keeps_its_names(name: str, size: dict[str, Any], kind: str) -> None:
    """They began with ``net.``, by which no other program knows them."""
    spandrel = pytest.importorskip("spandrel")
    net = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)(**size)
    torch.save(net.state_dict(), "net.pth")
    network = load_network([Path("net.pth")])
    export_network(network, kind, Path(f"out.{kind}"), describe(network, {}))
    assert spandrel.ModelLoader().load_from_file(f"out.{kind}").model.state_dict().keys() == net.state_dict().keys()
    assert export.limit_elsewhere(network, kind, "out") is None


@pytest.mark.parametrize(
    ("package", "use"),
    [("onnxscript", lambda network: export_network(network, "onnx", Path("out.onnx"), {})),
     ("onnxruntime", lambda network: open_engine([Path("out.onnx")])),
     ("ncnn", lambda network: export_network(network, "ncnn", Path("out"), {})),
     ("ncnn", lambda network: open_engine([Path("out.param")]))],
)  # fmt: skip
def test_without_the_extra_what_to_install_is_said(package: str, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_opened()
    for name in ("out.param", "out.bin"):
        Path(name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install 'dp_basicsr\[export\]'"):
        use(network)


def test_onnx_files_are_not_mixed_with_weights_or_broken() -> None:
    pytest.importorskip("onnxruntime")
    # onnxruntime#10892
    for start, message in (
        (b"", "is empty"),
        (b"version https://git-lfs", "run `git lfs pull`"),
        (b"<html>", "web page"),
    ):
        Path("bad.onnx").write_bytes(start)
        with pytest.raises(UserError, match=message):
            open_engine([Path("bad.onnx")])
    for name in ("bad.onnx", "bad.param", "bad.bin"):
        Path(name).write_bytes(b"not a model")
    for settings, message in (
        ({}, "bad.onnx: onnxruntime cannot run it: it is no ONNX file, or a part of one: export or download it again"),
        ({"device": "cuda:0"}, "--device cuda:0: this onnxruntime has no CUDA"),
        ({"precision": "bf16"}, "--precision bf16: ONNX and ncnn files run in the precision"),
    ):
        with pytest.raises(UserError, match=message):
            open_engine([Path("bad.onnx")], **settings)
    for paths in (["bad.onnx"], ["bad.onnx", network_file()], ["bad.bin"], ["bad.param", network_file()]):
        with pytest.raises(UserError, match="ONNX and ncnn files cannot be trained, interpolated or exported again"):
            load_network([*map(Path, paths)])


def onnx_file(shape: list[int | str] | None, *node: object, **settings: object) -> Path:
    """Write a file of one node, which takes ``x`` of a shape."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    factors = [1, 2, 2, 1] if shape and shape[3] == 3 else [1, 1, 2, 2]
    scales = onnx.numpy_helper.from_array(np.array(factors, np.float32), "scales")
    values = [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([helper.make_node(*node, ["y"], **settings)], "g", values[:1], values[1:], [scales])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "fixed.onnx")
    return Path("fixed.onnx")


def test_an_onnx_file_that_is_newer_than_the_engine_says_so() -> None:
    """microsoft/onnxruntime#20559."""
    onnx = pytest.importorskip("onnx")
    # onnxruntime#8327: a converter has made the factors of Resize fp16 too.
    model = onnx.load(path := onnx_file([1, 3, "h", "w"], "Resize", ["x", "", "scales"]))
    factors = np.array([1, 1, 2, 2], np.float16)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(factors, "scales"))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"Type Error: .*export it in float32, of opset 7 or newer$"):
        open_engine([path])
    path = onnx_file([1, 3, "h", "w"], "Add", ["x", "scales"])
    model = onnx.load(path)
    # onnxruntime#6793: "Could not find an implementation for Add(1)".
    model.opset_import[0].version = 1
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"export it in float32, of opset 7 or newer$"):
        open_engine([path])
    for version, opset in ((99, 13), (8, 99)):
        model.ir_version, model.opset_import[0].version = version, opset
        onnx.save(model, path)
        with pytest.raises(UserError, match=rf"newer than onnxruntime .*{max(version, opset)}.*pip install --upgrade"):
            open_engine([path])


@pytest.mark.parametrize(
    ("nodes", "is_told"),
    [("r = Constant<value_float = 0.5>() t = Constant<value_int = 1>() k = Cast<to = 9>(t) y = Dropout(x, r, k)", True),
     ("y = Dropout(x)", False), ("y, m, v = BatchNormalization<training_mode = 1>(x, o, o, o, o)", True),
     ("y = BatchNormalization(x, o, o, o, o)", False)],
)  # fmt: skip
def test_an_onnx_file_in_training_mode_is_told(nodes: str, is_told: bool) -> None:
    """onnxruntime#4589: exported before .eval(), its pixels depend on chance, or on the tile."""
    onnx = pytest.importorskip("onnx")
    text = f"""<ir_version: 8, opset_import: ["": 15]> g (float[n, 3, h, w] x) => (float[n, 3, h, w] y)
        <float[3] o = {{1, 1, 1}}> {{ {nodes} }}"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    told: list[str] = []
    open_engine([Path("net.onnx")], warn=told.append)
    assert ["net.onnx is in training mode" in line for line in told] == [True] * is_told


LEVELS = "k = Constant<value_float = 255.0>() b = Mul(x, k)"


@pytest.mark.parametrize(
    ("given", "nodes", "result"),
    [("float", "y = Round(x)", "float"), ("uint8", "y = Identity(x)", "uint8"), ("double", "y = Identity(x)", "double"),
     ("float", "k = Constant<value_float = 0.4>() y = Add(x, k)", "float"),
     ("uint8", "k = Constant<value_float = 255.0>() b = Cast<to = 1>(x) y = Div(b, k)", "float"),
     ("float", f"{LEVELS} r = Round(b) y = Cast<to = 2>(r)", "uint8"), ("float", "y = Identity(x)", "float"),
     ("float", "small = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) y = Identity(x)", "float")],
)  # fmt: skip
def test_an_onnx_file_may_take_and_give_levels_or_have_further_outputs(given: str, nodes: str, result: str) -> None:
    """openvinotoolkit/nncf and others write uint8; the first output of several need not be the picture."""
    onnx = pytest.importorskip("onnx")
    small = "float[n, 3, k, l] small, " if "small" in nodes else ""
    text = f"""<ir_version: 8, opset_import: ["": 15]> g ({given}[n, 3, h, w] x) => ({small}{result}[n, 3, h, w] y)
        {{ {nodes} }}"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    told: list[str] = []
    engine = open_engine([Path("net.onnx")], warn=told.append)
    pixels = noise(9, 36, 3)
    assert np.array_equal(Upscaler(engine)(pixels), pixels)
    assert np.array_equal(Upscaler(pickle.loads(pickle.dumps(engine)))(pixels), pixels)
    assert told == ["model net.onnx has the outputs small, y: the largest image is taken"] * bool(small)
    with pytest.raises(UserError, match=r"takes 4 channels: export it for RGB \(3\) or gray \(1\)"):
        open_engine([onnx_file([1, 4, "h", "w"], "Identity", ["x"])])


def test_an_onnx_file_of_other_numbers_is_refused_with_the_way() -> None:
    onnx = pytest.importorskip("onnx")
    text = """<ir_version: 8, opset_import: ["": 15]> g (uint16[n, 3, h, w] x) => (float[n, 3, h, w] y)
        { y = Cast<to = 1>(x) }"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    with pytest.raises(UserError, match="expected: .tensor.uint16.*; export it in float32"):
        open_engine([Path("net.onnx")])


def test_an_onnx_file_that_brightens_takes_values_up_to_1() -> None:
    onnx = pytest.importorskip("onnx")
    text = """<ir_version: 8, opset_import: ["": 15]> g (float[n, 3, h, w] x) => (float[n, 3, h, w] y)
        { k = Constant<value_float = 1.5>() y = Mul(x, k) }"""
    onnx.save(onnx.parser.parse_model(text), path := os.fsdecode(b"n\xe9t.onnx"))  # dvc#5083
    assert Upscaler(open_engine([Path(path)]))(np.full((8, 8, 3), 51, np.uint8)).max() == round(51 * 1.5)


def test_weights_beside_an_onnx_file_are_read_or_named(capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime#28764: those of a large network lie in a file of their own, which is easily left behind."""
    path = onnx_file([1, 3, "h", "w"], "Add", ["x", "scales"])
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "scales"))
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    data = Path("net.data")
    assert open_engine([path]).network.scale == 1
    for spoil in (lambda: os.truncate(data, 3), data.unlink):
        spoil()
        with pytest.raises(UserError, match="its weights are in net.data, which must be beside it and complete"):
            open_engine([path])
    model = onnx.load(onnx_file([1, 3, "h", "w"], "Resize", ["x", "", "scales"]))
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    with pytest.raises(UserError, match=r"shapes in a file beside it: onnx.save\(onnx.load\(FILE\), OTHER\) writes"):
        open_engine([path])
    onnx.save(onnx.load(path), "all.onnx")
    assert open_engine([Path("all.onnx")]).network.scale > 1
    assert capfd.readouterr() == ("", ""), "onnxruntime prints nothing itself"


@pytest.mark.parametrize(
    "shape",
    [[1, 3, 16, 16], [1, 3, 16, "w"], [4, 3, "h", "w"], [1, 1, 16, 16], [1, 8, 8, 3], ["n", "h", "w", 3],
     [1, 3, 16, 24], [2, 3, 24, 16], [1, 8, 12, 3], None],
)  # fmt: skip
def test_onnx_files_of_a_fixed_size_or_batch_upscale_any_image(shape: list[int | str] | None) -> None:
    """The image is cut and padded to what the file takes; nearest neighbour x2 shows that nothing is lost.

    openvino#12496: sizes that are fixed, partly or not at all, or are not in the file.
    """
    path = onnx_file(shape, "Resize", ["x", "", "scales"], mode="nearest", nearest_mode="floor",
                     coordinate_transformation_mode="asymmetric").rename("fixed.ONNX")  # fmt: skip
    pixels = noise(9, 37, 3)
    engine = open_engine([path])
    assert (engine.network.scale, engine.network.channels) == (2, 1 if shape and 3 not in shape else 3)
    assert np.array_equal(Upscaler(engine)(pixels), pixels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("has_value", [True, False])
def test_an_onnx_file_may_have_other_inputs_if_they_have_values(has_value: bool) -> None:
    """open_model_zoo#1107: the enlarged image, or the strength of noise, is a second input."""
    onnx = pytest.importorskip("onnx")
    text = f"""<ir_version: 8, opset_import: ["": 15]> g (float[n, 3, h, w] x, float[1] sigma) => (float[n, 3, h, w] y)
        <float[1] {"sigma" if has_value else "k"} = {{1}}> {{ y = Mul(x, sigma) }}"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    if has_value:
        assert open_engine([Path("net.onnx")]).network.scale == 1
        return
    with pytest.raises(UserError, match="beside the image, x, it takes sigma: export it for an image alone"):
        open_engine([Path("net.onnx")])


@pytest.mark.parametrize(
    ("multiple", "nodes"),
    [(32, "a = SpaceToDepth<blocksize = 32>(x) y = DepthToSpace<blocksize = 32>(a)"),
     (2, "a = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) "
         "b = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = Resize(a, , b)"), (1, "y = Identity(x)")],
)  # fmt: skip
def test_an_onnx_file_that_halves_the_image_gets_multiples(multiple: int, nodes: str) -> None:
    """chaiNNer#2939: it runs at 640 x 480 and fails at 800 x 600, or gives another size."""
    onnx = pytest.importorskip("onnx")
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[n, 3, h, w] x) => (float[n, c, k, l] y) {{ {nodes} }}'
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    engine = open_engine([Path("net.onnx")])
    pixels = np.full((33, 47, 3), 99, np.uint8)
    assert (engine.network.scale, engine.network.size.multiple) == (1, multiple)
    assert np.array_equal(Upscaler(engine)(pixels), pixels)


@pytest.mark.parametrize(("multiple", "least"), [(1, 15), (1, 40), (2, 15)])
def test_an_onnx_file_with_a_smallest_size_is_not_padded_to_multiples(multiple: int, least: int) -> None:
    """openvino#19355: BSRN's attention pools 15 pixels, so nothing smaller runs; a larger image is passed as it is."""
    onnx = pytest.importorskip("onnx")
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[n, 3, h, w] x) => (float[n, 3, k, l] y) {{
        a = SpaceToDepth<blocksize = {multiple}>(x) b = DepthToSpace<blocksize = {multiple}>(a)
        p = MaxPool<kernel_shape = [{least}, {least}]>(b) m = GlobalMaxPool(p) y = Max(b, m) }}"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    engine = open_engine([Path("net.onnx")])
    size = engine.network.size
    assert (size.multiple, size.fit(82, 94)) == (multiple, (82, 94))
    assert Upscaler(engine)(noise(5, 3, 3)).shape == (5, 3, 3)


@pytest.mark.parametrize("side", [16, 24, 64])
def test_an_onnx_file_that_is_frozen_under_free_names_upscales_any_image(side: int) -> None:
    """onnx/onnx#2618: dynamic axes, and in a pixel shuffle the size of the example."""
    onnx = pytest.importorskip("onnx")

    def write(height: int, width: int) -> Path:
        split, joined = (1, 3, 2, 2, height, width), (1, 3, 2 * height, 2 * width)
        text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[n, 3, h, w] x) => (float[n, 3, k, l] y) {{
            a = Concat<axis = 2>(x, x, x, x)
            s = Constant<value_ints = [{", ".join(map(str, (1, 3, 4, height, width)))}]>() b = Reshape(a, s)
            t = Constant<value_ints = [{", ".join(map(str, split))}]>() c = Reshape(b, t)
            d = Transpose<perm = [0, 1, 4, 2, 5, 3]>(c)
            u = Constant<value_ints = [{", ".join(map(str, joined))}]>() y = Reshape(d, u) }}"""
        onnx.save(onnx.parser.parse_model(text), "net.onnx")
        return Path("net.onnx")

    pixels = noise(33, 47, 3)
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[n, 3, h, w] x) => (float[n, 3, k, l] y) {{
        s = Constant<value_ints = [-1, 3, {side // 2}, 2, {side // 2}, 2]>() a = Reshape(x, s)
        t = Constant<value_ints = [-1, 3, {side}, {side}]>() y = Reshape(a, t) }}"""
    onnx.save(onnx.parser.parse_model(text), "net.onnx")
    assert np.array_equal(Upscaler(open_engine([Path("net.onnx")]))(pixels), pixels)
    engine = open_engine([write(side, side)])
    assert np.array_equal(Upscaler(engine)(pixels), pixels.repeat(2, 0).repeat(2, 1))
    with pytest.raises(
        UserError, match="it reshapes to fixed sizes of no square: export it with free height and width"
    ):
        open_engine([write(48, 80)])


def test_the_format_follows_the_name_and_anyone_may_read_the_file() -> None:
    network_file()
    assert code_of(export_model.main, ["-m", "net.pth", "-o", "a.safetensors"]) == 0
    Path("b").touch()
    assert Path("a.safetensors").stat().st_mode == Path("b").stat().st_mode
    assert code_of(export_model.main, ["-m", "net.pth", "-o", "a.unknown"]) == 2
    Path("folder").mkdir()
    assert code_of(export_model.main, ["-m", "net.pth", "-o", "folder", "--format", "pth"]) == 0
    assert load_network([Path("folder/net.pth")]).scale == 4
    # Such a file was damaged for our own upscale.
    assert parse(["-o", "v1.5", "--format", "onnx"]).output == Path("v1.5.onnx")
    assert parse(["-o", "new/", "--format", "onnx"]).output == Path("new/compact_x4_dp.onnx")
    # dvc#5083: bytes of another encoding than UTF-8 as names of the weights, the export and its folder.
    source, out = Path("net.pth").rename(os.fsdecode(b"n\xe9.pth")), os.fsdecode(b"\xe9/\xe9.safetensors")
    assert code_of(export_model.main, ["-m", str(source), "-o", out, "--openmodeldb", "e.json"]) == 0
    assert load_network([Path(out)]).notes["source"] == "n\\udce9.pth"
    source.rename("net.pth")
    # The longest name that the file and its card may have.
    assert code_of(export_model.main, ["-m", "net.pth", "-o", long := "x" * 248 + ".pth"]) == 0
    assert Path(long).is_file()


@pytest.mark.parametrize(
    ("output", "card"), [("x.v1.pth", "x.v1.pth.md"), ("x.v1.param", "x.v1.md"), ("x.v1", "x.v1.md")]
)
def test_a_card_is_replaced_only_on_request(output: str, card: str, refused: Callable[[Any, list[str]], str]) -> None:
    """InvokeAI#8352: names with a period; x.v1.param and x.v1 have one card."""
    network_file()
    Path(card).write_text("mine")
    kind = ["--format", "pth"] if output == "x.v1" else []
    assert f"already exists: {card}" in refused(export_model.main, ["-m", "net.pth", "-o", output, *kind])
    assert Path(card).read_text() == "mine"
    # The network was written before it was seen.
    Path(card).rename("old.md")
    Path(card).mkdir()
    text = refused(export_model.main, ["-m", "net.pth", "-o", output, *kind, "--overwrite"])
    assert f"{card}: expected a file to replace, got a folder" in text
    assert not Path(output).exists()


def test_the_check_of_values_takes_several_sizes_of_a_network_with_a_smallest_one() -> None:
    """onnxruntime#5928: SCUNet passed the check, whose images were all of its smallest size, and ran no other."""
    sizes = set()

    class Same:
        def run(self, images: np.ndarray) -> np.ndarray:
            sizes.add(images.shape[2:])
            return images

    network = OpenedNetwork("net.pth", "Test", 1, "Test x1", size=InputSize(minimum=40), module=torch.nn.Identity())
    assert difference_from_torch(network, Same(), CHECK_SIZES) == 0  # type: ignore[arg-type]
    assert len(sizes) == len(CHECK_SIZES)
