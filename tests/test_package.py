"""The installed package: it is complete, its commands start, and importing it has no side effects."""

from __future__ import annotations

import configparser
import importlib
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import dp_basicsr

import pytest

ROOT = Path(dp_basicsr.__file__).resolve().parents[1]
PACKAGES = sorted(module.name for module in pkgutil.iter_modules(dp_basicsr.__path__, "dp_basicsr.") if module.ispkg)

# Imports modules in a Python where a device, the network, a download or the command line raise.
GUARDED_IMPORT = """
import argparse, importlib, sys
import torch  # its own start-up is not tested

def refuse(*args, **kwargs):
    raise AssertionError("refused while importing " + name)

def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        refuse()

sys.addaudithook(audit)
argparse.ArgumentParser.parse_known_args = refuse
torch.cuda._lazy_init = refuse  # what the first CUDA tensor calls, with a card or without
torch.hub.load_state_dict_from_url = refuse
for name in sys.argv[2:]:
    importlib.import_module(name)
    assert not torch.cuda.is_initialized(), name
    assert torch.get_default_dtype() == torch.float32, name
"""


def run_python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new Python with the tree under test first on its path."""
    prefix = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", prefix + code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of ``pip install .``, built from a copy, so that nothing is written into the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "dp_basicsr", source / "dp_basicsr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    built = run_python(build, str(folder), cwd=source)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def read_metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's ``.dist-info`` folder."""
    path = next(entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode("utf-8")


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "dp_basicsr").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packaged == {path.relative_to(ROOT).as_posix() for path in files}


def test_metadata_states_version_python_and_core_requirements(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(read_metadata(wheel, "METADATA"))
    assert metadata["Version"] == dp_basicsr.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {line.split(">")[0].split("=")[0].strip().lower() for line in core}
    assert {"basicsr", "torch", "torchvision", "lpips", "opencv-python", "pyyaml", "lmdb"} <= names
    assert not any("==" in line or "<" in line for line in core), "exact pins or upper bounds shut out today's releases"


def test_console_commands_lead_to_functions(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(read_metadata(wheel, "entry_points.txt"))
    commands = dict(parser["console_scripts"])
    assert {"dp-basicsr-train", "dp-basicsr-test"} <= commands.keys()
    for target in commands.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), target


def test_importing_the_package_does_not_import_torch() -> None:
    result = run_python("import dp_basicsr; assert 'torch' not in sys.modules and 'basicsr' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_importing_the_package_is_enough_for_basicsr() -> None:
    code = (
        "import dp_basicsr, basicsr\n"
        "from basicsr.archs import build_network\n"
        "build_network(dict(type='RRDBNet', num_in_ch=3, num_out_ch=3, num_feat=4, num_block=1, num_grow_ch=2))\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_importing_the_packages_has_no_other_effect(tmp_path: Path) -> None:
    result = run_python(GUARDED_IMPORT, "--no-such-option", *PACKAGES, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
