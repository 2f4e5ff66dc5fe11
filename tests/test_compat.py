"""The bridges. That importing the plugin is enough, and does nothing else, is in test_package.py."""

from __future__ import annotations

import subprocess
import sys

from torchvision.transforms import functional


def test_the_bridge_gives_torchvision_s_own_function() -> None:
    from basicsr.data.degradations import rgb_to_grayscale

    assert rgb_to_grayscale is functional.rgb_to_grayscale


def test_without_the_plugin_it_is_not() -> None:
    """The day this fails, the bridge can go."""
    code = "import basicsr.data.degradations"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "functional_tensor" in done.stderr
