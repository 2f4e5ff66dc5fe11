"""Exports, opened by those who will open them: spandrel (chaiNNer, ComfyUI), onnxruntime, BasicSR."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dp_basicsr import __version__, inference
from dp_basicsr.archs import load_network
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy import export
from dp_basicsr.deploy.choices import EXPORTS
from dp_basicsr.deploy.export import describe, export_network, spandrel_limit
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.provenance import fingerprint, trace
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.rrdbnet_arch import RRDBNet
from PIL import Image

from tests.support.gpu import on_device
from tests.support.networks import make_network

ROOT = Path(inference.__file__).resolve().parents[1]
IMAGE = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(9))
EVERY = [
    ("RRDBNetDP", 4, 32), ("RRDBNetDP", 2, 32), ("RRDBNetDP", 3, 32), ("RRDBNetDP", 4, 16),
    ("RRDBNet", 2, 32), ("RRDBNet", 1, 32), ("MSRResNet", 4, 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """scripts/export_model.py as a module."""
    spec = importlib.util.spec_from_file_location("export_model", ROOT / "scripts" / "export_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(arch: str, scale: int, growth: int = 32, num_block: int = 2) -> OpenedNetwork:
    net = make_network(arch, scale, num_grow_ch=growth, num_block=num_block)
    torch.save({"params": net.state_dict()}, "trained.pth")
    ambiguous = arch == "RRDBNetDP" and scale < 4
    return load_network([Path("trained.pth")], scale=scale if ambiguous else None)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(("arch", "scale", "growth"), EVERY)
def test_spandrel_gives_the_same_pixels_or_the_limit_is_told(arch: str, scale: int, growth: int, kind: str) -> None:
    spandrel = pytest.importorskip("spandrel")
    network = load(arch, scale, growth)
    assert export_network(network, kind, Path(f"out.{kind}"), describe(network, {})) == 0  # type: ignore[arg-type]
    limit = spandrel_limit(network)
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


@pytest.mark.parametrize(("arch", "scale"), [("RRDBNetDP", 4), ("RRDBNet", 2), ("MSRResNet", 3)])
def test_onnxruntime_gives_the_same_pixels_at_any_size(arch: str, scale: int) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = load(arch, scale, num_block=1)
    facts = describe(network, {"source": "trained.pth"})
    assert export_network(network, "onnx", Path("out.onnx"), facts) < 2e-6
    again = open_engine([Path("out.onnx")])
    assert (again.network.scale, again.network.size) == (scale, network.size)
    assert facts.items() <= again.network.notes.items()
    for shape in ((1, 3, 2, 6), (3, 3, 26, 22), (1, 3, 8 + network.size.multiple, 34)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        result = torch.from_numpy(again.run(image.numpy()))
        torch.testing.assert_close(result, network.module(image), rtol=0, atol=1e-5)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (35, 41, 3), dtype=np.uint8)).save("in.png")
    for model in ("out.onnx", "trained.pth"):
        assert inference.main(["-i", "in.png", "-o", f"{model}.png", "--model_path", model, "--tile", "32"]) == 0
    first, second = (np.asarray(Image.open(f"{model}.png")).astype(int) for model in ("out.onnx", "trained.pth"))
    assert first.shape == (35 * scale, 41 * scale, 3)
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_half_precision_halves_the_file_and_opens_everywhere(kind: str) -> None:
    spandrel = pytest.importorskip("spandrel")
    network = load("RRDBNetDP", 4)
    assert export_network(network, kind, Path(f"out.{kind}"), describe(network, {}), half=True) == 0  # type: ignore[arg-type]
    assert Path(f"out.{kind}").stat().st_size < 0.6 * Path("trained.pth").stat().st_size
    ours, theirs = load_network([Path(f"out.{kind}")]), spandrel.ModelLoader().load_from_file(f"out.{kind}")
    assert torch.equal(ours.module(IMAGE), theirs.model.float()(IMAGE))
    torch.testing.assert_close(ours.module(IMAGE), network.module(IMAGE), rtol=0, atol=1e-3)


def test_weights_beyond_fp16_are_refused_as_half() -> None:
    network = load("RRDBNetDP", 4)
    network.module.conv_last.bias += 1e5
    with pytest.raises(UserError, match="--half: some weights are beyond the range of fp16"):
        export_network(network, "pth", Path("out.pth"), {}, half=True)


def test_onnx_in_half_precision_is_opened_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = load("MSRResNet", 3)
    assert 1e-5 < export_network(network, "onnx", Path("out.onnx"), describe(network, {}), half=True) < 3e-3
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)).save("in.png")
    for model in ("out.onnx", "trained.pth"):
        assert inference.main(["-i", "in.png", "-o", f"{model}.png", "--model_path", model]) == 0
    first, second = (np.asarray(Image.open(f"{model}.png")).astype(int) for model in ("out.onnx", "trained.pth"))
    assert np.abs(first - second).max() <= 2


def test_basicsr_loads_the_pth_strictly_and_it_holds_nothing_else(tmp_path: Path) -> None:
    network = load("RRDBNetDP", 4)
    export_network(network, "pth", Path("out.pth"), describe(network, {"source": "trained.pth"}))
    content = torch.load("out.pth", weights_only=True)
    net = RRDBNet(3, 3, scale=4, num_feat=8, num_block=2, num_grow_ch=32).eval()
    net.load_state_dict(content.pop("params"), strict=True)
    assert torch.equal(net(IMAGE), network.module(IMAGE))
    assert all(isinstance(value, (str, int)) for value in content.values())
    assert (content["scale"], content["arch"], content["source"]) == (4, "RRDBNetDP", "trained.pth")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_x3_is_known_again_without_being_told(kind: str) -> None:
    network = load("RRDBNetDP", 3)
    export_network(network, kind, Path(f"out.{kind}"), describe(network, {}))  # type: ignore[arg-type]
    assert load_network([Path(f"out.{kind}")]).scale == 3


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A training run: option file, log, data, and its network at iteration 400."""
    run, data = tmp_path / "experiments" / "mine", tmp_path / "HR"
    (run / "models").mkdir(parents=True)
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).write_bytes(name.encode())
    options = {
        "name": "mine", "model_type": "ESRGANDPModel", "scale": 4, "num_gpu": 0,
        "datasets": {"train": {"name": "DIV2K", "dataroot_gt": str(data)}, "val": {"name": "Set5", "dataroot_gt": "x"}},
        "network_g": {"type": "RRDBNetDP", "scale": 4},
        "train": {"perceptual_opt": {"type": "DPLoss", "mu": 0.5}},
    }  # fmt: skip
    (run / "train.yml").write_text(yaml.safe_dump(options))
    (run / "train_mine_1.log").write_text("2026 INFO: dp_basicsr 0.0.9\nVersion Information: ...")
    torch.save({"params_ema": make_network().state_dict()}, run / "models" / "net_g_400.pth")
    return run


def test_provenance_is_that_of_the_run_and_survives_another_export(run_folder: Path) -> None:
    path = run_folder / "models" / "net_g_400.pth"
    network = load_network([path])
    facts = trace(path, network.notes)
    assert (facts["source"], facts["iteration"], facts["trained_by"]) == ("net_g_400.pth", "400", "dp_basicsr 0.0.9")
    assert facts["exported_by"] == f"dp_basicsr {__version__}"
    assert json.loads(facts["options"])["train"]["perceptual_opt"]["mu"] == 0.5
    assert facts["dataset_DIV2K"].startswith("HR: 2 images, sha256 ")
    assert "dataset_Set5" not in facts
    export_network(network, "safetensors", Path("first.safetensors"), describe(network, facts))
    again = load_network([Path("first.safetensors")])
    assert trace(Path("first.safetensors"), again.notes).items() >= facts.items()


def test_published_options_hold_neither_secrets_nor_paths(run_folder: Path) -> None:
    path = run_folder / "models" / "net_g_400.pth"
    options = yaml.safe_load((run_folder / "train.yml").read_text())
    options["wandb_key"] = options["train"]["wandb_key"] = options["network_g"]["api_token"] = "s3cret"
    options["logger"] = {"wandb": {"project": "s3cret"}}
    options["path"] = {"pretrain_network_g": "/home/someone/private.pth"}
    options["train"]["perceptual_opt"]["vgg_weights"] = "/home/someone/vgg.pth"
    options["datasets"]["train"] |= {"gt_size": 128, "meta_info_file": "/home/someone/list.txt"}
    (run_folder / "train.yml").write_text(yaml.safe_dump(options))
    facts = trace(path, {})
    assert not any(word in str(facts) for word in ("s3cret", "someone", str(run_folder)))
    published = json.loads(facts["options"])
    assert published["datasets"] == {"train": {"name": "DIV2K", "gt_size": 128}}
    assert published["train"] == {"perceptual_opt": {"type": "DPLoss", "mu": 0.5, "vgg_weights": "(path)"}}


@pytest.mark.parametrize(
    "text",
    [
        "name: env\nchannels: [conda-forge]\ndependencies: [python=3.11]\nwandb_key: s3cret\n",
        "name: x\nmodel_type: M\nnetwork_g: {}\ndatasets: {train: {dataroot_gt: [a, b]}, 3: 4}\nwandb_key: s3cret\n",
        "name: x\nmodel_type: M\nnetwork_g: {}\ndatasets: []\n",
        "[1, 2]",
        "a: [",
    ],
)
@pytest.mark.parametrize("with_log", [True, False])
def test_option_files_of_others_are_no_provenance(
    run_folder: Path, command: ModuleType, text: str, with_log: bool
) -> None:
    (run_folder / "train.yml").write_text(text)
    if not with_log:
        (run_folder / "train_mine_1.log").write_text("2026 INFO: some other trainer 1.0")
    weights = str(run_folder / "models" / "net_g_400.pth")
    assert command.main(["--model_path", weights, "--format", "safetensors", "-o", "out.safetensors"]) == 0
    notes = load_network([Path("out.safetensors")]).notes
    assert "s3cret" not in str(notes) + Path("out.safetensors.md").read_text()
    assert with_log or "options" not in notes
    assert "dataset_train" not in notes


def test_metadata_of_others_is_not_passed_on() -> None:
    notes = {"exported_by": "somebody", "wandb_key": "s3cret", "options": "not JSON", "source": "x", "format": "pt"}
    facts = trace(Path(__file__), notes)
    assert facts.keys() == {"source", "source_sha256", "exported_by"}
    assert facts["source"] == "test_export.py"
    for options in ("not JSON", "[" * 100_000, '{"name": ' * 900 + "0" + "}" * 900):
        ours = notes | {"exported_by": "dp_basicsr 0.1", "options": options}
        assert "options" not in trace(Path(__file__), ours)


def test_a_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"22")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(content)
    first, same, other = (fingerprint(tmp_path / name).partition(":")[2] for name in "abc")
    assert first == same != other
    (tmp_path / "a" / "meta_info.txt").write_text("x.png (4,4,3) 1\ny.png (4,4,3) 1\n")
    assert "2 images" in fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "nowhere") == "nowhere: not on the machine that exported"


def test_command_writes_file_and_card(
    run_folder: Path, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table.md").write_text("| Set5, Y, crop 4 | 30.1 dB |")
    arguments = ["--model_path", str(run_folder / "models" / "net_g_400.pth"), "--format", "safetensors"]
    arguments += ["-o", "deep/esrgan_dp.safetensors", "--license", "Apache-2.0", "--metrics", "table.md"]
    assert command.main(arguments) == 0
    assert "wrote deep/esrgan_dp.safetensors (RRDBNetDP x4" in capsys.readouterr().out
    card = Path("deep/esrgan_dp.safetensors.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    for part in (
        "# esrgan_dp", "30.1 dB", "iteration: 400", "DIV2K: HR: 2 images", '"mu": 0.5', "model_type: ESRGANDPModel",
        "-m esrgan_dp.safetensors", "every program on spandrel open it",
    ):  # fmt: skip
        assert part in card
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "already exists: deep/esrgan_dp.safetensors" in capsys.readouterr().err
    assert command.main([*arguments, "--overwrite"]) == 0


def test_command_says_what_spandrel_cannot(
    network_file: Callable[..., Path], command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = network_file(arch="MSRResNet")
    assert command.main(["--model_path", str(path), "--format", "pth", "-o", "out.pth"]) == 0
    assert "note: spandrel (chaiNNer, ComfyUI) cannot open it: it does not know MSRResNet" in capsys.readouterr().out
    card = Path("out.pth.md").read_text()
    assert "cannot open it: it does not know MSRResNet" in card
    assert "not stated: ask whoever trained it" in card
    assert "options: not known" in card


def test_an_export_that_differs_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load("RRDBNetDP", 4)
    monkeypatch.setattr(export, "_compare_weights", lambda *_: float("nan"))
    with pytest.raises(UserError, match="differs from the network by nan; nothing was written"):
        export_network(network, "pth", Path("out/out.pth"), {})
    assert list(Path("out").iterdir()) == []


def test_a_runtime_that_refuses_a_size_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """SwinIR#145: exporters take some sizes of windows for constants."""

    class Refusing:
        def __init__(self, path: Path) -> None: ...

        @staticmethod
        def write(*_: Any) -> None: ...

        def run(self, image: Any) -> Any:
            raise RuntimeError("Got invalid dimensions")

    monkeypatch.setattr(type(EXPORTS["onnx"]), "load", lambda _: Refusing)
    with pytest.raises(UserError, match=r"onnx cannot take every size.*nothing was written; export it as"):
        export_network(load("RRDBNetDP", 4), "onnx", Path("out/out.onnx"), {})
    assert list(Path("out").iterdir()) == []


def test_without_the_extra_onnx_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load("RRDBNetDP", 4)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'dp_basicsr\[export\]'"):
        export_network(network, "onnx", Path("out.onnx"), {})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"need onnxruntime: pip install 'dp_basicsr\[export\]'"):
        open_engine([Path("out.onnx")])


def test_onnx_files_are_not_mixed_with_weights_or_broken(network_file: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    Path("bad.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="bad.onnx: onnxruntime cannot run it"):
        open_engine([Path("bad.onnx")])
    with pytest.raises(UserError, match="--device cuda:0: this onnxruntime has no CUDA"):
        open_engine([Path("bad.onnx")], device="cuda:0")
    with pytest.raises(UserError, match="--precision bf16: ONNX and ncnn files run in the precision"):
        open_engine([Path("bad.onnx")], precision="bf16")
    for paths in ([Path("bad.onnx")], [Path("bad.onnx"), network_file()]):
        with pytest.raises(UserError, match="ONNX and ncnn files cannot be trained, interpolated or exported again"):
            load_network(paths)


@pytest.mark.parametrize("shape", [[1, 3, 16, 16], [1, 3, 16, "w"], [4, 3, "h", "w"], [1, 1, 16, 16]])
def test_onnx_files_of_a_fixed_size_or_batch_upscale_any_image(shape: list[int | str]) -> None:
    """The image is cut and padded to what the file takes; nearest neighbour x2 shows that nothing is lost."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    scales = helper.make_tensor("scales", kind, [4], [1, 1, 2, 2])
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                            coordinate_transformation_mode="asymmetric")  # fmt: skip
    values = [helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, "fixed.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 37, 3), dtype=np.uint8)
    engine = open_engine([Path("fixed.onnx")])
    assert (engine.network.scale, engine.network.channels) == (2, shape[1])
    assert np.array_equal(Upscaler(engine)(pixels), pixels.repeat(2, 0).repeat(2, 1))


def test_an_onnx_file_of_another_fixed_size_says_which() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [1, 3, 16, 24]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, "wide.onnx")
    with pytest.raises(UserError, match="it takes 16 x 24 pixels alone: expected a square, or any size"):
        open_engine([Path("wide.onnx")])


def test_the_format_follows_the_name_and_anyone_may_read_the_file(run_folder: Path, command: ModuleType) -> None:
    assert command.main(["-m", str(run_folder / "models" / "net_g_400.pth"), "-o", "a.safetensors"]) == 0
    Path("b").touch()
    assert Path("a.safetensors").stat().st_mode == Path("b").stat().st_mode
    with pytest.raises(SystemExit):
        command.main(["-m", str(run_folder / "models" / "net_g_400.pth"), "-o", "a.unknown"])
