"""Networks in ncnn's format: written by pnnx, run by the ncnn package."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.export import export_network, limit_elsewhere
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch

from tests.support.networks import small_opened

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")


@pytest.mark.parametrize(
    ("arch", "scale", "half"),
    [("RRDBNetDP", 4, False), ("RRDBNetDP", 3, True), ("RRDBNetDP", 2, False), ("MSRResNet", 4, True),
     ("MSRResNet", 3, False)],
)  # fmt: skip
def test_ncnn_gives_the_pixels_of_torch(arch: str, scale: int, half: bool) -> None:
    network = small_opened(arch, scale, num_block=1)
    difference = export_network(network, "ncnn", Path("out"), {}, half)
    print(f"{arch} x{scale} fp{16 if half else 32}: ncnn differs by {difference:.1e}")
    assert 1e-5 < difference < 2e-3 if half else difference < 5e-6
    assert {path.name for path in Path().iterdir()} == {"net.pth", "out.param", "out.bin"}
    assert (Path("out.bin").stat().st_size < 0.6 * Path("net.pth").stat().st_size) == half
    again = open_engine([Path("out.bin")])
    assert again.network.scale == scale
    image = torch.rand(2, 3, 19, 34, generator=torch.Generator().manual_seed(1))
    result = torch.from_numpy(again.run(image.numpy()))
    torch.testing.assert_close(result, network.module(image), rtol=0, atol=5e-3 if half else 1e-5)
    blobs = {word for line in Path("out.param").read_text().splitlines()[2:] for word in line.split()}
    assert {"data", "output"} <= blobs, "the names that Upscayl looks for"
    assert not {"in0", "out0"} & blobs


@pytest.mark.parametrize("scale", [1, 2])
def test_a_folded_network_takes_images_of_any_size(scale: int) -> None:
    """ncnn's pixel-unshuffle would drop the last row and column of an odd image."""
    network = small_opened("RRDBNet", scale, num_block=1)
    net = Path(os.fsdecode(b"\xe9/n\xe9") if scale == 1 else "net")  # dvc#5083
    assert export_network(network, "ncnn", net, {}) < 5e-6
    ours, theirs = open_engine([net.with_suffix(".param")]), open_engine([Path("net.pth")], engine="torch")
    assert ours.network.size.multiple == theirs.network.size.multiple == 4 // scale
    image = np.random.default_rng(0).random((1, 3, 17, 30), np.float32)
    assert np.abs(ours(image) - theirs(image)).max() < 1e-5


def test_a_network_that_shrinks_the_image_gets_multiples() -> None:
    """Beside chaiNNer#2939: where results of two sizes meet, ncnn says nothing and invents pixels."""
    Path("net.bin").touch()
    Path("net.param").write_text(
        "7767517\n5 6\nInput in 0 1 a\nSplit split 1 2 a b c\nPooling down 1 1 b d 0=1 1=4 2=4 5=1\n"
        "Interp up 1 1 d e 0=1 1=4.0 2=4.0\nBinaryOp add 2 1 c e out 0=0\n"
    )
    engine = open_engine([Path("net.param")])
    image = np.random.default_rng(0).random((1, 3, 33, 47), np.float32)
    padded = np.pad(image, ((0, 0), (0, 0), (0, 3), (0, 1)), mode="reflect")
    means = padded.reshape(1, 3, 9, 4, 12, 4).mean((3, 5)).repeat(4, 2).repeat(4, 3)
    assert np.abs(engine(image) - (padded + means)[:, :, :33, :47]).max() < 1e-5


@pytest.mark.parametrize(
    ("layers", "error"),
    [("3 3\nInput in 0 1 a\nBinaryOp mul 1 1 a b 0=2 1=1 2=0.5\nInterp up 1 1 b out 0=1 1=2.0 2=2.0\n", None),
     ("2 2\nInput in 0 1 a\nInterp up 1 1 a out 0=1 3=64 4=64\n", "it gives one size alone: export it anew")],
)  # fmt: skip
def test_a_layer_that_writes_into_the_image_runs_and_a_frozen_size_is_named(layers: str, error: str | None) -> None:
    """Tencent/ncnn#1029: the first ended the process, the second was "could not broadcast" for each image."""
    Path("net.bin").touch()
    Path("net.param").write_text(f"7767517\n{layers}")
    with pytest.raises(UserError, match=error) if error else nullcontext():
        assert (open_engine([Path("net.param")])(np.ones((1, 3, 9, 12), np.float32)) == 0.5).all()


@pytest.mark.parametrize(
    ("scale", "name", "said"),
    [
        (4, "net", None), (4, "net_x4", None), (2, "2x-net", None), (3, "net_X3", None),
        (2, "net", "x4 for net: choose one with x2"), (4, "net_x2", "x2 for net_x2: choose one with x4"),
        (3, "x2_x3", "x2 for x2_x3"), (1, "net", "Upscayl cannot use it"), (8, "net_x8", "takes this x8 for x4"),
    ],
)  # fmt: skip
def test_a_name_that_upscayl_takes_for_another_scale_is_told(scale: int, name: str, said: str | None) -> None:
    """upscayl/upscayl#566."""
    limit = limit_elsewhere(OpenedNetwork("net.pth", "Compact", scale, "Compact"), "ncnn", name)
    assert (limit is None) if said is None else said in str(limit)


@pytest.mark.parametrize("features", [4, 12])
def test_the_weights_of_another_network_are_refused(features: int) -> None:
    """chaiNNer#2542: ncnn read the beginning of larger ones, and the picture was noise."""
    export_network(small_opened(num_block=1), "ncnn", Path("out"), {}, False)
    export_network(small_opened(num_block=1, num_feat=features), "ncnn", Path("other"), {}, False)
    Path("other.bin").replace("out.bin")
    with pytest.raises(UserError, match="model out.bin: expected the weights of out.param"):
        open_engine([Path("out.param")])


def test_what_cannot_be_run_is_refused() -> None:
    Path("alone.param").touch()
    with pytest.raises(UserError, match=r"no such file: alone.bin"):
        open_engine([Path("alone.param")])
    # Tencent/ncnn#6130: of exchanged files the message was a megabyte of weights.
    Path("bad.param").write_bytes(b"\xff\0rubbish\n\n" * 9)
    Path("bad.bin").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="exchange it with bad.bin, save it without a byte order mark") as raised:
        open_engine([Path("bad.param")])
    assert "rubbish" not in str(raised.value)
    Path("bad.param").write_text("7767517\nrubbish")
    with pytest.raises(UserError, match="model bad.param: ncnn cannot read it: copy it again with bad.bin"):
        open_engine([Path("bad.param")])
    # upscayl/upscayl#1416
    Path("bad.param").write_text("7767517\n2 2\nInput a 0 1 a\nSwishh b 1 1 a b\n")
    with pytest.raises(UserError, match="model bad.param: ncnn has no layer Swishh"):
        open_engine([Path("bad.param")])
    Path("bad.param").write_text("7767517\n2 2\nInput a 0 1 a\nConvolution b 1 1 a b 0=3 1=3 6=81\n")
    Path("bad.bin").write_bytes(b"")
    with pytest.raises(UserError, match="model bad.bin: expected the weights of bad.param, got 0 bytes"):
        open_engine([Path("bad.param")])
    Path("bad.bin").write_bytes(bytes(4 + 4 * 81))
    with pytest.raises(UserError, match="model bad.bin: expected weights, got zeros alone: copy it again"):
        open_engine([Path("bad.param")])
    Path("size.bin").touch()
    # Tencent/ncnn#3555: it said that the colours were wrong, and a size that fits by chance gave a picture cut off.
    for factor, side in ((1.9, 8), (2.03, 40)):
        Path("size.param").write_text(f"7767517\n2 2\nInput a 0 1 a\nInterp b 1 1 a b 0=1 1={factor} 2={factor}\n")
        with pytest.raises(UserError, match=rf"whole multiple of the size, got \S+ .*{side}.*: export it anew"):
            open_engine([Path("size.param")])(np.zeros((1, 3, side, side), np.float32))
    two_inputs = "7767517\n3 3\nInput a 0 1 a\nInput b 0 1 b\nBinaryOp add 2 1 a b sum 0=0\n"
    Path("two.param").write_text(two_inputs)
    Path("two.bin").touch()
    with pytest.raises(UserError, match=r"model two.param: expected one input, an image, got 2 \(a, b\)"):
        open_engine([Path("two.param")], device="cpu:0")
    with pytest.raises(UserError, match="--device cuda:0: ncnn files run on the CPU"):
        open_engine([Path("bad.param")], device="cuda:0")
