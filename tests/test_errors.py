"""Which errors are the user's, and what they say."""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dp_basicsr import inference, train
from dp_basicsr.errors import EXTRAS, REQUIRED, UserError, code_behind, exit_on_user_error, first_line, import_optional

import pytest

from tests.support.programs import ROOT, Program


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),  # from os.pipe, which starts a worker
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "image.png"),
        RuntimeError("received 0 items of ancdata"),  # pytorch#973
    ],
)
def test_the_limit_of_open_files_is_one_message(error: Exception, refused: Callable[..., str]) -> None:
    """zju3dv/NeuralRecon#91."""

    def fail(argv: list[str]) -> None:
        with exit_on_user_error():
            raise error

    said = refused(fail, [])
    assert said.startswith("error: too many open files: raise the limit (ulimit -n 65536)")
    assert said.count("\n") == 1
    assert "num_worker_per_gpu" in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), r"ulimit -u, docker run --pids-limit"),  # of fork
        (MemoryError("Unable to allocate 548. MiB"), r"out of memory \(Unable .*: .* taskset -c 0"),  # IQA-PyTorch#136
        (RuntimeError("can't start new thread"), r"ulimit -u, docker run --pids-limit"),  # Project-MONAI/MONAI#1328
        (
            RuntimeError(
                "Expected to have finished reduction in the prior iteration before starting a new one. This error ...\n"
                "Parameters which did not receive grad for rank 1: a.bias, b.weight\n"
                "Parameter indices which did not receive grad for rank 1: 4 5\n In addition, you can ..."
            ),
            r"\(a\.bias, b\.weight\).*find_unused_parameters: true",
        ),  # open-mmlab/mmagic#419
        (ImportError("libtorch_cpu.so: failed to map segment from shared object", name="torch"), r"noexec"),
        (ValueError("Expected more than 1 value per channel when training, got"), "a larger batch_size_per_gpu"),
    ],
)
def test_what_a_machine_or_torch_refuses_is_one_message(
    error: Exception, expected: str, refused: Callable[..., str]
) -> None:
    def fail(argv: list[str]) -> None:
        with exit_on_user_error():
            raise error

    said = refused(fail, [])
    assert re.fullmatch(f"error: .*{expected}.*\n", said)


def test_a_container_without_a_temporary_folder_is_one_message(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """huggingface/open-r1#488: torch's import fails, and its second import with another error."""

    def fail(argv: list[str]) -> None:
        with exit_on_user_error():
            raise AssertionError("already registered")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.path.abspath("nowhere")])
    assert "TMPDIR" in refused(fail, [])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are others there")
def test_a_reader_that_is_gone_ends_a_command_quietly() -> None:
    """Backblaze/B2_Command_Line_Tool#1071: ``dp-basicsr options | head -n 1``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dp_basicsr", "options"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


FAULTS = {
    "broken": ("raise TypeError('Descriptors cannot be created directly')", "TypeError: Descriptors cannot be created"),
    "lacks a library": ("raise ImportError('libtbb.so: cannot open')", "ImportError: libtbb.so: cannot open"),
    "lacks a module": ("import {0}.no_such_part", "ModuleNotFoundError: No module named '{0}.no_such_part'"),
    "lacks a package": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "too old": ("", "AttributeError: module '{}' has no attribute 'new_function'"),
}


@pytest.mark.parametrize("package", EXTRAS)
def test_each_optional_package_may_be_missing_broken_or_too_old(
    package: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """Whatever its import raises, a program ends with one line: the package, the reason and a command."""

    def use(argv: list[str]) -> None:
        with exit_on_user_error():
            importlib.import_module(package).new_function()

    monkeypatch.setitem(sys.modules, package, None)  # so that what it was comes back
    for number, (code, reason) in enumerate(FAULTS.values()):
        folder = Path(str(number), package).absolute()
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code.format(package))
        monkeypatch.syspath_prepend(str(folder.parent))
        monkeypatch.delitem(sys.modules, package, raising=False)
        (line,) = refused(use, []).splitlines()
        assert re.match(f"error: {package}( [\\d.]\\S*)? is installed, but cannot be used ", line)
        assert reason.format(package) in line
        advice = f"pip install --upgrade --force-reinstall {package}"
        if package == "basicsr":
            assert f", in {folder})" in line
            advice = "pip uninstall basicsr; python -m dp_basicsr.get_basicsr"
        assert line.endswith(f": {advice}")
    Path(package).mkdir()  # no package, as the folder that wandb makes for its runs
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{folder.parent.relative_to(Path.cwd())}:")
    assert refused(use, []).endswith(f": take {folder.parent} off PYTHONPATH\n"), "pip would change nothing"
    monkeypatch.delenv("PYTHONPATH")
    (folder / "__init__.py").write_text("raise SystemExit(3)")
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, package)
    with pytest.raises(UserError, match=f"{package}.* cannot be used .*SystemExit: 3"):
        import_optional(package)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed: p"):
        import_optional(package)


@pytest.mark.parametrize("package", REQUIRED)
@pytest.mark.parametrize("importer", ["ours", "piq"])
def test_a_broken_package_that_all_need_is_named_whoever_imports_it(
    package: str, importer: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """pytorch/vision#9174: a torchvision that does not fit torch."""

    def use(argv: list[str]) -> None:
        with exit_on_user_error():
            importlib.import_module(importer)

    for name, code in ((importer, f"import {package}.part"), (package, f"raise RuntimeError('{package}::nms')")):
        folder = Path(*name.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    (line,) = refused(use, []).splitlines()
    assert re.match(f"error: {package}( [\\d.]\\S*)? is installed, but cannot be used ", line)
    assert f"RuntimeError: {package}::nms" in line
    assert line.endswith(f": pip install --upgrade --force-reinstall {REQUIRED[package]}")


@pytest.mark.parametrize("package", sorted(EXTRAS.keys() - {"basicsr"}))
def test_a_broken_package_that_another_optional_one_imports_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """A scipy that does not fit numpy is no broken basicsr, which imports a module of it."""
    for name, code in (("basicsr", f"import {package}.part"), (package, ""), (f"{package}/part", "raise TypeError(1)")):
        Path(name).mkdir()
        Path(name, "__init__.py").write_text(code)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("basicsr", package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(Path.cwd()))

    def use(argv: list[str]) -> None:
        with exit_on_user_error():
            importlib.import_module("basicsr")

    assert re.match(f"error: {package}( [\\d.]\\S*)? is installed, but cannot be used ", refused(use, []))


@pytest.mark.parametrize(
    ("package", "main", "argv"),
    [("yaml", train.main, ["-opt", "o.yml"]), ("PIL", inference.main, ["-i", "a", "-o", "b"])],
)
def test_a_program_names_a_missing_package(
    package: str, main: Program, argv: list[str], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    Path("o.yml").touch()
    monkeypatch.delitem(sys.modules, "dp_basicsr.deploy.batch", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(main, argv) == f"error: {package} is not installed: pip install {REQUIRED[package]}\n"


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_missing_package_is_named_with_the_way_to_all_that_are_missing(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """GFPGAN#45: a clone that is not installed lacks each of its requirements."""

    def use(argv: list[str]) -> None:
        with exit_on_user_error():
            importlib.import_module(package)

    clone = Path(first_line.__code__.co_filename).parents[1]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [name] if is_installed else [])
    for package, names in REQUIRED.items():
        monkeypatch.setitem(sys.modules, package, None)
        way = f"pip install {names}" if is_installed else f"pip install '{clone}'"
        assert refused(use, []) == f"error: {package} is not installed: {way}\n"
    package = "gradio"
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(use, []).endswith(f": pip install '{'dp_basicsr' if is_installed else clone}[webui]'\n")


def test_a_loss_that_no_import_has_registered_gets_advice(refused: Callable[..., str]) -> None:
    """MM-RealSR, whose model builds one of `mmrealsr.losses`."""

    def use(argv: list[str]) -> None:
        from basicsr.losses import build_loss

        with exit_on_user_error():
            build_loss({"type": "MarginRankingLoss"})

    assert refused(use, []).splitlines()[-1].endswith("in 'loss' registry! --import MODULE adds another package's")


def test_what_ours_lack_is_named_and_what_is_not_theirs_is_not(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """A pydantic that is too old; TensorBoard, which torch refuses; no folder for temporary files in torch's import."""

    def fail(code: str, name: str) -> None:
        with exit_on_user_error():
            exec(compile(code, name, "exec"), {"__name__": name})

    said = refused(lambda argv: fail(argv[0], "dp_basicsr.x"), ["from pydantic import NothingOfThisName"])
    assert re.match("error: pydantic [\\d.]+ is installed, but cannot be used .*--force-reinstall pydantic\n", said)
    names = "{'__name__': 'torch.utils.tensorboard'}"
    with pytest.raises(ImportError, match="TensorBoard 1.15"):
        fail(f"exec('raise ImportError(\"needs TensorBoard 1.15\")', {names})", "dp_basicsr.x")
    with pytest.raises(AttributeError):
        fail("import numpy; numpy.no_such_name", "dp_basicsr.x")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.path.abspath("nowhere")])
    assert "TMPDIR" in refused(lambda argv: fail(argv[0], "torch"), ["raise RuntimeError('already registered')"])


def test_the_first_process_of_a_container_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """mrmn2/PdfDing#165: the kernel gives it no signal without a handler."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(SystemExit, match="143"), exit_on_user_error():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_script_without_the_guard_is_one_message_of_its_workers(tmp_path: Path) -> None:
    """MONAI/tutorials#631: a spawned worker runs its parent's script once more."""
    script = tmp_path / "script.py"
    start = "multiprocessing.get_context('spawn').Process(target=print)"
    script.write_text(
        "import multiprocessing\nfrom dp_basicsr.__main__ import main\nmain(['options'])\n"
        f"worker = {start}\nworker.start()\nworker.join()\nraise SystemExit(worker.exitcode)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2
    assert re.fullmatch(r"error: a worker process runs the script once more.*__name__ == .__main__.*\n", done.stderr)


def test_the_cause_is_named_instead_of_the_step_of_torch_s_exporter() -> None:
    """onnxruntime#5928: "This is step 3/3 of exporting the model to ONNX", with codes of a terminal's colours."""
    step = type("ConversionError", (RuntimeError,), {"__module__": "torch.onnx.errors"})("step 3/3")
    step.__cause__ = ValueError("No ONNX function found for sort")
    assert first_line(step) == "No ONNX function found for sort"


def test_what_the_packages_of_ours_need_is_no_plug_in_s_code() -> None:
    """A fault of ours may be raised there, and keeps its traceback."""
    with pytest.raises(ValueError, match="invalid literal") as raised:
        importlib.import_module("sympy").Integer("of torch")
    assert code_behind(raised.value)[0] == "tests"
