"""The bridges, and what importing the plugin does and does not do: in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_plugin_makes_basicsr_importable() -> None:
    code = "import dp_basicsr, basicsr; from basicsr.data.degradations import rgb_to_grayscale as f; print(f.__module__)"
    assert python(code).splitlines()[-1].startswith("torchvision.transforms")


def test_without_the_plugin_it_is_not() -> None:
    """The day this fails, the bridge can go."""
    code = "import basicsr.data.degradations"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "functional_tensor" in done.stderr


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    assert python("import sys, dp_basicsr; print({'torch', 'torchvision', 'basicsr'} & sys.modules.keys())") == "set()"


@pytest.mark.parametrize(
    ("package", "registry", "names"),
    [
        ("losses", "LOSS_REGISTRY", ["DPLoss"]),
        ("archs", "ARCH_REGISTRY", ["RRDBNetDP", "VGGFeatures", "ResNetFeatures"]),
        ("models", "MODEL_REGISTRY", ["ESRGANDPModel", "SRGANDPModel", "PSNRModel"]),
    ],
)
def test_importing_a_package_registers_and_does_nothing_else(package: str, registry: str, names: list[str]) -> None:
    """No device, no download (sockets are forbidden), no command line (it would see the option)."""
    code = f"""
import socket, sys
sys.argv = ["program", "--an-option-of-the-caller"]
socket.socket = None
import dp_basicsr.{package}, torch
from basicsr.utils.registry import {registry}
assert all(name in {registry} for name in {names}), list({registry}.keys())
assert not torch.cuda.is_initialized() and not torch.distributed.is_initialized()
"""
    assert python(code) == ""
