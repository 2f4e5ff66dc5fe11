"""The installed package: it is complete, its commands start, and importing it has no side effects."""

from __future__ import annotations

import configparser
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import dp_basicsr
from dp_basicsr import get_basicsr

import pytest

from tests.support.programs import ROOT, python

PACKAGES = sorted(module.name for module in pkgutil.iter_modules(dp_basicsr.__path__, "dp_basicsr.") if module.ispkg)

# Imports modules in a Python where a device, the network, a download or the command line raise.
GUARDED_IMPORT = """
import argparse, importlib, sys
import dp_basicsr
assert "torch" not in sys.modules and "basicsr" not in sys.modules
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built from a copy, so that nothing is written into the tree."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "site", "datasets",
                                      "experiments", "results", "tb_logger", "demo_output")  # fmt: skip
    shutil.copytree(ROOT, source, ignore=left_out)
    (source / "datasets").mkdir()
    # Of an earlier build; the wheel must not have it.
    (source / "build/lib/dp_basicsr").mkdir(parents=True)
    (source / "build/lib/dp_basicsr/renamed.py").touch()
    shutil.copy(ROOT / "datasets/README.md", source / "datasets")
    build = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    python(build, folder, cwd=source, env={"GITHUB_REPOSITORY": "owner/name"})
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    """The wheel of ``pip install .``."""
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(read_metadata(wheel, "METADATA"))


def read_metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's ``.dist-info`` folder."""
    path = next(entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode("utf-8")


def files_below(folder: str) -> set[str]:
    """The files of a folder of the tree, as they are named in an archive."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_wheel_holds_the_package_and_the_option_files_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    options = {f"dp_basicsr/option_files/{name.removeprefix('options/')}" for name in files_below("options")}
    assert packaged == files_below("dp_basicsr") | options
    assert "dp_basicsr/py.typed" in packaged


def test_sdist_can_run_its_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("dp_basicsr", "options", "scripts", "tests", "docs", "benchmarks", "examples")
    needed = set().union(*map(files_below, folders)) | {"Makefile", "mkdocs.yml", "CITATION.cff", "datasets/README.md"}
    assert needed <= packed


def test_an_editable_install_works_in_the_folder_of_the_clone(built: Path, tmp_path: Path) -> None:
    """facebookresearch/sam2#346: the clone, called as the package, was imported in its place."""
    build = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    python(build, tmp_path, cwd=built / "source")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    (tmp_path / "dp_basicsr").symlink_to(built / "source")
    start = "import sys, site; sys.path.insert(0, ''); site.addsitedir('site'); from dp_basicsr import __version__; "
    start += "import dp_basicsr.utils.arguments as a; print(a.ROOT, a.SHIPPED.name)"
    # Alone, because the paths of the tests lead to the package.
    command = [sys.executable, "-I", "-S", "-c", start]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said == f"{(built / 'source').resolve()} options\n"


def test_metadata_states_version_python_and_requirements(metadata: Message) -> None:
    assert metadata["Version"] == dp_basicsr.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    lines = metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[>;\s]", line)[0] for line in lines if "extra ==" not in line}
    assert {"torch", "torchvision", "opencv-python", "pyyaml"} <= core
    assert not core & {"basicsr", "lmdb", "lpips", "scipy"}, "only training needs them"
    bounds = [line.partition(";")[0] for line in lines if "extra" not in line]
    assert not any("==" in bound or "<" in bound for bound in bounds)
    extra = {line.partition(";")[0] for line in lines if line.endswith('extra == "train"')}
    # tensorboard#7107: BasicSR's tb-nightly needs pkg_resources, which setuptools 82 no longer has.
    assert extra == {*get_basicsr.TRAIN, "setuptools<82"}
    for file in (ROOT / "Makefile", Path(get_basicsr.__file__)):
        assert re.findall(r"setuptools>=77[^'\"]*", file.read_text()) == ["setuptools>=77,<82"]


def test_links_of_the_description_are_absolute(metadata: Message) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", str(metadata.get_payload()))
    assert "https://github.com/owner/name/blob/main/docs/installation.md" in links
    assert "https://github.com/owner/name/raw/main/docs/images/box.jpg" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_console_command_leads_to_a_function(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(read_metadata(wheel, "entry_points.txt"))
    ((command, target),) = parser["console_scripts"].items()
    assert command == "dp-basicsr"
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), target


def test_importing_the_packages_has_no_effect() -> None:
    assert python(GUARDED_IMPORT, "--no-such-option", *PACKAGES).stdout == ""
    assert list(Path().iterdir()) == []


def test_upscaling_exporting_and_the_loss_run_without_basicsr() -> None:
    done = python((ROOT / ".ci/try_wheel.py").read_text(encoding="utf-8"))
    assert done.stderr.splitlines()[-1] == "error: basicsr is not installed: python -m dp_basicsr.get_basicsr"
