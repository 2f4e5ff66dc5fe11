"""Engines: the same values as torch, chosen, converted once, and opened without torch."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from dp_basicsr import inference
from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy import open_engine as module
from dp_basicsr.deploy import openvino_engine, torch_engine
from dp_basicsr.deploy.choices import ENGINES
from dp_basicsr.deploy.engine import Engine, limit_threads
from dp_basicsr.deploy.onnx_engine import import_onnxruntime
from dp_basicsr.deploy.open_engine import cache_root, open_engine
from dp_basicsr.deploy.torch_engine import TorchEngine
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError, first_line
from dp_basicsr.utils.input_size import InputSize

import numpy as np
import pytest
import torch

from tests.support.images import write_noise
from tests.support.networks import make_network, network_file, small_opened
from tests.support.programs import python

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is an extra", allow_module_level=True)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_home_folder_is_expanded_in_the_cache_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#69761: a folder called ~ was made."""
    monkeypatch.setenv("XDG_CACHE_HOME", "~/mine")
    assert cache_root() == Path.home() / "mine/dp_basicsr"


@pytest.fixture
def model() -> Path:
    return network_file(arch="MSRResNet", scale=2)


def entries() -> list[Path]:
    root = cache_root()
    return sorted(root.iterdir()) if root and root.is_dir() else []


@pytest.mark.parametrize(
    ("name", "arch", "scale"),
    [("openvino", "RRDBNetDP", 3), ("openvino", "RRDBNet", 2), ("openvino", "MSRResNet", 2),
     ("onnxruntime", "MSRResNet", 2)],
)  # fmt: skip
def test_an_engine_gives_the_values_of_torch(name: Any, arch: str, scale: int) -> None:
    pytest.importorskip("onnxscript")
    model = network_file(arch=arch, scale=scale, num_block=1)
    told, state = scale if scale == 3 else None, torch.random.get_rng_state()
    torch_engine, engine = (open_engine([model], engine=kind, scale=told) for kind in ("torch", name))
    assert torch.equal(torch.random.get_rng_state(), state), "numbers of the program that opens it"
    assert isinstance(torch_engine, TorchEngine)
    assert f", by {name} " in engine.title
    assert any(path.name.startswith(f"{name}-") for path in entries())
    assert (torch_engine.network.size, torch_engine.network.scale) == (engine.network.size, engine.network.scale)
    shapes = 4 * [(1, 3, 1, 1), (1, 3, 24, 40), (2, 3, 17, 33)]
    # Not contiguous, as after turning one.
    images = [np.random.default_rng(seed).random(shape[::-1], np.float32).T for seed, shape in enumerate(shapes)]
    # openvino#2349: called by threads at once, "Infer Request is busy".
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(engine, images))
    for image, result in zip(images, results, strict=True):
        expected = torch_engine(image)
        difference = np.abs(expected - result).max() / np.abs(expected).max()
        print(f"{arch} x{scale} {image.shape}: {name} differs by {difference:.1e}")
        assert difference < 5e-6


@pytest.mark.parametrize("name", ["torch", "openvino", "onnxruntime"])
def test_an_engine_computes_in_float32_in_a_program_whose_numbers_are_float64(name: Any, model: Path) -> None:
    pytest.importorskip("onnxscript")
    image = np.random.default_rng(0).random((1, 3, 17, 33), np.float32)
    expected = open_engine([model], engine=name)(image)
    for entry in entries():
        shutil.rmtree(entry)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(open_engine([model], engine=name)(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_converted_network_is_opened_without_torch(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noise("in.png", 8, 9)
    arguments = ["-i", "in.png", "--model_path", str(model), "-o"]
    assert inference.main([*arguments, "first.png"]) == 0
    assert "converted in" in capsys.readouterr().out
    code = (
        "import sys; from dp_basicsr import inference; code = inference.main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'basicsr', 'torchvision', 'spandrel') if name in sys.modules])\n"
        "sys.exit(code)"
    )
    Path("home").mkdir()
    monkeypatch.delenv("CI", raising=False)  # would switch OpenVINO's telemetry off
    printed = python(code, *arguments, "second.png", env={"HOME": str(Path("home").absolute())}).stdout
    assert "converted in" not in printed
    assert printed.splitlines()[-1] == "[]"
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()
    assert list(Path("home").iterdir()) == [], "telemetry writes an identity"


FREED_IN_A_THREAD = """
import signal, sys, threading
from pathlib import Path
from dp_basicsr.deploy.open_engine import open_engine
engines = [open_engine([Path("net.pth")], engine="openvino")]
thread = threading.Thread(target=engines.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_is_handled_after_a_thread_has_freed_a_network(model: Path) -> None:
    """As on the page; OpenVINO alone would end the process with a segmentation fault."""
    open_engine([model], engine="openvino")
    assert python(FREED_IN_A_THREAD).stdout == "interrupted\n"


FORKED = """
import multiprocessing, pickle, sys
from pathlib import Path
import numpy as np
from dp_basicsr.deploy.open_engine import open_engine
engine, image = open_engine([Path("net.pth")], engine=sys.argv[1]), np.ones((1, 3, 200, 200), np.float32)
expected = engine(image)
def error(other=engine):
    return float(np.abs(other(image) - expected).max())
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(max(pool.apply_async(error).get(30), error(pickle.loads(pickle.dumps(engine)))) < 1e-5)
"""


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_an_engine_runs_in_a_forked_process_and_can_be_pickled(name: str, model: Path) -> None:
    """onnxruntime#5093, insightface#1881: the threads of an engine stay with the process that opened it."""
    assert python(FORKED, name, env={"OMP_NUM_THREADS": "2"}).stdout == "True\n"


def test_a_network_whose_experts_depend_on_the_image_is_not_converted() -> None:
    """openvino#25744: SeemoRe chooses by the image; converted, it kept the choice for one, up to 255 of 255 away."""
    pytest.importorskip("openvino")
    from spandrel.architectures.SeemoRe import SeemoRe

    torch.manual_seed(0)
    torch.save(SeemoRe(scale=2, num_experts=3, num_layers=1, embedding_dim=8).state_dict(), "net.pth")
    with pytest.raises(UserError, match="--engine openvino cannot be used: what it computes depends on the image"):
        open_engine([Path("net.pth")], engine="openvino")


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_gray_network_that_takes_no_batch_runs_on_colours(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DRUNet's: each image failed, in each engine."""
    from spandrel.architectures.DRUNet import DRUNet

    monkeypatch.setattr(module, "ENGINES", {"openvino": ENGINES["openvino"]})
    torch.save(DRUNet(in_nc=2, out_nc=1, nc=[4, 4, 4, 4], nb=2).state_dict(), "net.pth")
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    engine = open_engine([Path("net.pth")], engine=name, warn=lambda _: None)
    result = engine(image)
    np.testing.assert_allclose(result[:, 1:2], engine.run(image[:, 1:2]), atol=1e-6)


def test_openvino_is_not_given_weights_without_values() -> None:
    """RGT and CRAFT of 12 channels: its conversion ended the process with a segmentation fault."""
    pytest.importorskip("openvino")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 0, 1))
    network = OpenedNetwork("net.pth", "Test", 1, "Test x1", module=module)
    with pytest.raises(RuntimeError, match=r"it takes no weights without values, as 1\.weight"):
        openvino_engine.OpenVinoEngine.write(network, Path("net.xml"), {})


def test_a_network_that_catches_what_fails_on_a_small_image_is_converted() -> None:
    """GRL tries to reflect an image of 16 pixels to its 64: torch's tracer ended the process."""
    pytest.importorskip("openvino")

    class Reflecting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rest = -x.shape[-1] % 64
            try:
                return torch.nn.functional.pad(x, (0, rest, 0, 0), mode="reflect") if rest else x + 1
            except RuntimeError:
                return torch.nn.functional.pad(x, (0, rest))

    network = OpenedNetwork("net.pth", "Test", 1, "Test x1", size=InputSize(step=64), module=Reflecting())
    openvino_engine.OpenVinoEngine.write(network, Path("net.xml"), {})
    assert Path("net.xml").is_file()


def test_torch_runs_a_network_that_views_images_as_they_lie_in_memory() -> None:
    """IPT, which no engine ran: the colours of an image in torch's lie last, where its views find no rows."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), Viewing())
    network = OpenedNetwork("net.pth", "Test", 1, "Test x1", module=module)
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    engine = TorchEngine(network, "cpu")
    for _ in range(2):
        np.testing.assert_allclose(engine.run(image), expected, atol=1e-6)


class Viewing(torch.nn.Module):
    """Turns an image by 180 degrees, as one row of numbers for each colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(1, -1).flip(1).view(x.shape)


def test_ctrl_c_while_openvino_converts_is_not_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page went on without OpenVINO; it is the same for SIGTERM, whose handler raises SystemExit."""
    openvino = pytest.importorskip("openvino")
    convert = openvino.convert_model

    def interrupted(*given: Any, **more: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise RuntimeError("Check 'false' failed") from error
        return convert(*given, **more)

    monkeypatch.setattr(openvino, "convert_model", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        openvino_engine.OpenVinoEngine.write(small_opened(), Path("net.xml"), {})
    assert signal.getsignal(signal.SIGINT) is before


class Doubling(Engine):
    """Stands in for OpenVINO, without the conversion, which takes seconds."""

    @staticmethod
    def write(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool = False) -> None:
        pass

    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        assert network is not None
        return network, "by nobody"

    def run(self, images: Any) -> Any:
        assert self.network is not None
        return images.repeat(2, 2).repeat(2, 3) + 0.5 if self.network.scale == 2 else images


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OpenVinoEngine", Doubling)
    monkeypatch.setattr(torch_engine, "difference_from_torch", lambda *_: 0.0)


@pytest.mark.usefixtures("quick")
def test_the_cache_knows_weights_interpolation_and_run_and_is_bounded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_engine([model])
    (entry,) = entries()
    assert "converted in" not in open_engine([model]).title
    assert entries() == [entry]
    state = make_network("MSRResNet", 2).state_dict()
    torch.save({"params": {name: value + 0.01 for name, value in state.items()}}, "other.pth")
    open_engine([Path("other.pth")])
    open_engine([model, Path("other.pth")], alpha_interp=0.5)
    assert len(entries()) == 3
    (entry / "network.json").write_bytes(b"damaged")
    assert "converted in" in open_engine([model]).title
    monkeypatch.setattr(module, "KEPT", 2)
    drafts = [entry.parent / name for name in (".draft-killed", ".draft-at-work")]
    for draft, modified in zip(drafts, (0, time.time()), strict=True):
        (draft / "entry").mkdir(parents=True)
        os.utime(draft, (modified, modified))
    open_engine([model, Path("other.pth")], alpha_interp=0.4)
    assert not drafts[0].exists()
    shutil.rmtree(drafts[1])
    assert len(entries()) == 2
    # RRDBNetDP x2 and x3 have the same tensors, and the run's option file tells which it is.
    for scale in (3, 2):
        Path(f"run{scale}/models").mkdir(parents=True)
        options = f"{{name: x, model_type: M, datasets: {{}}, network_g: {{type: RRDBNetDP, scale: {scale}}}}}"
        Path(f"run{scale}/train.yml").write_text(options)
        assert open_engine([network_file(f"run{scale}/models/net_g_5.pth", scale=3)]).network.scale == scale
    # openvino#27795: what a CPU could not run was taken from the cache of another, and failed for each image.
    assert "converted in" not in open_engine([Path("run2/models/net_g_5.pth")]).title
    monkeypatch.setattr(np, "show_config", lambda _: {"SIMD Extensions": {"baseline": ["X86_V2"]}})
    assert "converted in" in open_engine([Path("run2/models/net_g_5.pth")]).title


def test_a_damaged_conversion_is_made_again(model: Path) -> None:
    open_engine([model], engine="openvino")
    for file in entries()[0].rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.chmod(0o600)
            file.write_bytes(b"damaged")
    assert "converted in" in open_engine([model], engine="openvino").title


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("home", ["none", "not there", "full"])
def test_without_a_folder_for_them_networks_are_converted_each_time(
    home: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """detectron2#381: a container whose user has no home; openvino#20190: a full disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", {"none": "", "not there": "/proc/none"}.get(home, str(tmp_path / "cache")))
    if home == "full":
        (tmp_path / "cache").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path / "cache")]
        if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
            pytest.skip("a small file system cannot be mounted here: not root")
        request.addfinalizer(lambda: subprocess.run(["umount", tmp_path / "cache"], check=True))
    if home == "none":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(Path, "home", lambda: Path("~unknown-user").expanduser())  # raises
    warned: list[str] = []
    engine = open_engine([model], engine="openvino", warn=warned.append)
    assert len(warned) == 1
    assert "cannot be kept" in warned[0]
    assert "XDG_CACHE_HOME" in warned[0]
    folder = Path(engine.scratch.name)
    assert folder.is_dir()
    del engine
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("error", ["ImportError('libtbb.so: cannot open')", "TypeError('Descriptors')"])
def test_a_package_that_is_installed_but_broken_is_passed_over_with_the_reason(
    error: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """roboflow/rf-detr#844."""
    Path("broken").mkdir()
    for name in ("openvino", "onnxruntime"):
        Path(f"broken/{name}.py").write_text(f"raise {error}")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    openvino_engine.core.cache_clear()
    warned: list[str] = []
    assert isinstance(open_engine([model], warn=warned.append), TorchEngine)
    reason = error.split("'")[1]
    assert [word.split()[0] for word in warned] == ["openvino", "onnxruntime"]
    assert all(reason in word for word in warned)
    with pytest.raises(UserError, match=f"--engine openvino cannot be used: .*{reason}.*; give --engine auto or torch"):
        open_engine([model], engine="openvino")
    openvino_engine.core.cache_clear()


def test_engines_start_no_more_threads_than_the_process_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """HivisionIDPhotos#211: onnxruntime binds its threads to CPUs outside of a container's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for allowed, threads in ((8, 0), (3, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=allowed: set(range(cpus)), raising=False)
        assert limit_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert limit_threads() == 2


def test_openvino_keeps_little_for_each_size_of_image(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime#5796: by default, 5000 entries, the memory grew with each size; the engine takes this property."""
    compile_model = Mock(wraps=openvino_engine.core().compile_model)
    monkeypatch.setattr(openvino_engine, "core", lambda: Mock(compile_model=compile_model))
    open_engine([model], engine="openvino")
    assert compile_model.call_args.args[2]["CPU_RUNTIME_CACHE_CAPACITY"] < 1000


def test_onnxruntime_is_imported_without_its_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("fault", ["convert", "values", "open"])
def test_auto_falls_back_and_a_named_engine_is_refused(
    fault: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"convert": "write", "open": "load"}.get(fault, "run")
    works = getattr(openvino_engine.OpenVinoEngine, method)

    def fail(*given: Any) -> Any:
        if any(isinstance(value, OpenedNetwork) and value.scale == 2 for value in given):
            raise RuntimeError("no such operator\nand a long trace")
        return works(*given)

    if fault == "values":
        monkeypatch.setattr(openvino_engine, "OpenVinoEngine", Doubling)
    else:
        monkeypatch.setattr(openvino_engine.OpenVinoEngine, method, fail)
    monkeypatch.setattr(module, "ENGINES", {"openvino": ENGINES["openvino"]})
    warned: list[str] = []
    assert isinstance(open_engine([model], warn=warned.append), TorchEngine)
    reason = "it differs from torch by .* on a probe" if fault == "values" else "no such operator"
    assert len(warned) == 1
    assert warned[0].startswith("openvino cannot be used (")
    # Remembered, because the attempt may take longer than the images.
    monkeypatch.setattr(module, "_convert", None)
    with pytest.raises(UserError, match=rf"--engine openvino cannot be used: {reason}; give --engine auto or torch"):
        open_engine([model], engine="openvino")
    assert [file.name for entry in entries() for file in entry.iterdir()] == ["network.json"]


@pytest.mark.parametrize("fault", [RuntimeError("no primitive\nfor X"), MemoryError(), "NaN"])
def test_an_engine_that_fails_later_is_followed_by_the_next(
    fault: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rf-detr#844: what works at the start need not work at the third image, of another size."""
    works = openvino_engine.OpenVinoEngine.run

    def run(self: Any, images: Any) -> Any:
        if images.shape[3] == 20 and fault != "NaN":
            raise fault
        return works(self, images) * (np.nan if images.shape[3] == 20 else 1)

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "run", run)
    monkeypatch.setattr(module, "ENGINES", {"openvino": ENGINES["openvino"]})
    upscale, by_torch = (Upscaler(open_engine([model], engine=engine)) for engine in ("auto", "torch"))
    told: list[str] = []
    upscale.warn = told.append
    for width, is_torch in ((16, False), (20, True), (16, True)):
        image = np.random.default_rng(width).integers(0, 256, (12, width, 3), np.uint8)
        assert np.abs(upscale(image).astype(int) - by_torch(image)).max() <= 1
        assert isinstance(upscale.engine, TorchEngine) == is_torch
    reason = "the network gives values that are not finite, in fp32 too" if fault == "NaN" else first_line(fault)
    assert told == [f"openvino failed ({reason}): continuing with the next engine"]
    named = Upscaler(open_engine([model], engine="openvino"))
    with pytest.raises(Exception, match="no primitive|memory|its weights are not usable for this image"):
        named(np.zeros((12, 20, 3), np.uint8))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), RuntimeError("bad allocation"), OSError("No space left"), ImportError(),
        RuntimeError('Device with "CPU" name is not registered'),  # openvino#34300: for any network
    ],
)  # fmt: skip
def test_what_may_work_the_next_time_is_tried_again(
    error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_engine.OpenVinoEngine, "write", Mock(side_effect=error))
        with pytest.raises(UserError, match="cannot be used"):
            open_engine([model], engine="openvino")
    assert "converted in" in open_engine([model], engine="openvino").title


def test_a_cpu_with_a_number_is_a_cpu(model: Path) -> None:
    assert "by openvino" in open_engine([model], device="cpu:0").title


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "--engine openvino runs on the CPU"),
        ({"alpha_interp": 0.5}, "--alpha_interp needs two models"),
        ({"scale": 3}, "--scale 3: .*; the size of the result is --outscale"),
        ({"paths": [Path("gone.pth")]}, "gone.pth"),
        ({"paths": [Path("x.onnx")]}, "--engine openvino: ONNX and ncnn files run in their own engine: leave it out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_engine(**{"paths": [model], "engine": "openvino", **options})


def test_what_is_not_installed_is_named_or_skipped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(open_engine([model]), TorchEngine)
    for name, extra in (("openvino", "openvino"), ("onnxruntime", "export")):
        with pytest.raises(UserError, match=rf"--engine {name} is not installed: pip install 'dp_basicsr\[{extra}\]'"):
            open_engine([model], engine=name)  # type: ignore[arg-type]


def test_fp32_is_not_computed_as_fp16_was(model: Path) -> None:
    """Real-ESRGAN#305: OpenVINO took the form compiled for the one for the other, and values beyond fp16's failed."""
    image = torch.rand(1, 3, 16, 16).numpy()
    clean = open_engine([model], engine="openvino")(image)
    shutil.rmtree(cache_root() or "")
    if not openvino_engine.OpenVinoEngine.supports("fp16"):
        pytest.skip("this CPU does not compute in fp16")
    assert not np.array_equal(open_engine([model], engine="openvino", precision="fp16")(image), clean)
    np.testing.assert_array_equal(open_engine([model], engine="openvino")(image), clean)


def test_half_precision_only_where_the_cpu_has_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENGINES", {"openvino": ENGINES["openvino"]})
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "supports", lambda precision: precision == "fp32")
    assert open_engine([model], precision="auto").precision == "fp32"
    with pytest.raises(UserError, match="it does not compute in bf16 on this CPU"):
        open_engine([model], engine="openvino", precision="bf16")
    warned: list[str] = []
    assert open_engine([model], precision="bf16", warn=warned.append).precision == "bf16", "torch emulates it"
    assert len(warned) == 1
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "supports", lambda precision: True)
    assert open_engine([model], precision="auto").precision == "bf16"
