"""The one place that knows about versions: what BasicSR 1.4.2 needs to run on today's torch, torchvision and numpy.

BasicSR 1.4.2 (2022) is its last release. Each bridge says what it mends and when it can go. Nothing here imports torch,
so ``import dp_basicsr`` stays cheap and touches no device.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_REMOVED_MODULE = "torchvision.transforms.functional_tensor"


class _FunctionalTensorBridge(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed.

    ``basicsr.data.degradations`` takes ``rgb_to_grayscale`` from it, so that ``import basicsr`` fails without. The
    finder stands *last* in ``sys.meta_path``: it is asked only where torchvision itself has no such module.
    It can go when a BasicSR release imports from ``torchvision.transforms.functional``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REMOVED_MODULE:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        functional = importlib.import_module("torchvision.transforms.functional")
        module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]


def install() -> None:
    """Put every bridge in place. Safe to call more than once; must run before the first ``import basicsr``."""
    if not any(isinstance(finder, _FunctionalTensorBridge) for finder in sys.meta_path):
        sys.meta_path.append(_FunctionalTensorBridge())
