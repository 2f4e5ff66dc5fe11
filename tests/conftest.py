"""Shared fixtures: small images, small options, and the benchmark images if available."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from tests.support.fuzz import SECONDS, SEED
from tests.support.gpu import DEVICES, use_device
from tests.support.images import write_pairs
from tests.support.programs import Program, code_of

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Else the collector looks again and again at the half million objects that the imports leave; see below.
gc.disable()

# Ignored after a shell's & and under nohup; the programs under test would inherit it, and not end as a test expects.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Files whose tests take longest, for two processes: what starts last should be short.
LONG = ("test_two_hosts", "test_gpu_report", "test_webui", "test_data_commands", "test_bench", "test_kills",
        "test_open_engine", "test_export", "test_parallel_method", "test_soak", "test_platforms", "test_launch",
        "test_train_and_test", "test_trial", "test_option_files", "test_package", "test_fuzz_checkpoints")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let pytest-xdist send what a test wrote: names of files need not be Unicode."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Let it see BasicSR's log, which does not reach the root logger once an earlier test has set it up."""
    from basicsr.utils import get_root_logger

    logger = get_root_logger()
    # Where pytest itself listens to it directly, caplog would hear everything twice.
    monkeypatch.setattr(logger, "propagate", caplog.handler not in logger.handlers)
    return caplog


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Run a test on the CPU and, if there is one, on a GPU; with IMITATE_GPU=1 on an imitated one.

    A file takes it for all its tests by ``pytestmark = pytest.mark.usefixtures("device")``; ``on_device`` and
    ``model_options`` follow it. On the GPU float32 is float32 (no TF32), and every operation is deterministic.
    """
    if request.param == "cuda":
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with use_device(request.param) as chosen:
        yield chosen


@pytest.fixture(scope="session")
def set5() -> Path:
    """Set5 with MATLAB's own LR images: GT, LRbicx2, LRbicx3, LRbicx4."""
    folder = SHARED_DATA / "Set5"
    if not folder.is_dir():
        pytest.skip("Set5 with MATLAB's LR images is not at ../shared/data/Set5")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of networks that were converted for an engine, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in its own folder, offline and without this machine's pretrained weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    download = torch.hub.download_url_to_file

    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        if "127.0.0.1" not in url:
            raise URLError(f"tests do not download {url}")
        download(url, *args, **kwargs)

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[Program, list[str]], str]:
    """A function that runs a program which must end with exit code 2, and returns what it wrote to stderr."""

    def run(main: Program, argv: list[str]) -> str:
        capsys.readouterr()
        assert code_of(main, argv) == 2
        return capsys.readouterr().err

    return run


def pytest_report_header() -> list[str]:
    """Print the seed of generated tests."""
    return [f"generated tests: {SECONDS:g} s each, FUZZ_SEED={SEED}"] if SECONDS else []


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with GT (four smooth random 160 x 144 images) and LRbicx4 of them."""
    return write_pairs(tmp_path / "pairs", *[(160, 144)] * 4)
