"""The one place that knows about versions: what BasicSR 1.4.2 needs to run on today's torch, torchvision and numpy.

BasicSR 1.4.2 (2022) is its last release. Each bridge says what it is for and when it can go. Nothing here imports torch
before it is needed, so ``import dp_basicsr`` stays cheap and touches no device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import IO, Any

_REMOVED_MODULE = "torchvision.transforms.functional_tensor"
_MATLAB_FUNCTIONS = "basicsr.utils.matlab_functions"


class _FunctionalTensorBridge(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find ``torchvision.transforms.functional_tensor``, which torchvision 0.17 renamed, under its old name.

    ``basicsr.data.degradations`` imports from it, so that ``import basicsr`` fails without. The finder stands *last* in
    ``sys.meta_path``: it is asked only where torchvision itself has no such module.
    It can go when a BasicSR release imports from ``torchvision.transforms.functional``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REMOVED_MODULE:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[_REMOVED_MODULE] = importlib.import_module("torchvision.transforms._functional_tensor")


class _MatlabFunctionsBridge(importlib.abc.MetaPathFinder):
    """Give ``basicsr.utils.matlab_functions`` the ``rgb2ycbcr`` that BasicSR 1.4 moved to ``color_util``.

    HAT's datasets import it from the old place. It can go when HAT imports it from ``basicsr.utils``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MATLAB_FUNCTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_and_complete(module: ModuleType) -> None:
                execute(module)
                _complete_matlab_functions(module)

            spec.loader.exec_module = exec_and_complete  # type: ignore[method-assign]
        return spec


def _complete_matlab_functions(module: Any) -> None:
    if not hasattr(module, "rgb2ycbcr"):
        module.rgb2ycbcr = importlib.import_module("basicsr.utils.color_util").rgb2ycbcr


def _open_utf8(file: Any, mode: str = "r") -> IO[Any]:
    return open(file, mode, encoding=None if "b" in mode else "utf-8")


def read_lists_as_utf8() -> None:
    """Make BasicSR's data sets read their text files (``meta_info_file``) as UTF-8; it takes the locale's encoding.

    It can go when a BasicSR release names the encoding.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("basicsr.data."):
            vars(module)["open"] = _open_utf8


def install() -> None:
    """Put every bridge in place. Safe to call more than once, and after ``import basicsr`` where that works."""
    if any(isinstance(finder, _FunctionalTensorBridge) for finder in sys.meta_path):
        return
    sys.meta_path.append(_FunctionalTensorBridge())
    sys.meta_path.insert(0, _MatlabFunctionsBridge())
    if _MATLAB_FUNCTIONS in sys.modules:
        _complete_matlab_functions(sys.modules[_MATLAB_FUNCTIONS])


@contextlib.contextmanager
def without_cuda(on_cpu: bool) -> Iterator[None]:
    """Make ``.cuda()`` return the tensor or module itself, in a run on the CPU (``num_gpu: 0``).

    BasicSR's RealESRGANModel and RealESRNetModel, and the models of others that were made after them, call it without
    asking where they run. It can go when they use ``self.device``.
    """
    if not on_cpu:
        yield
        return
    torch = importlib.import_module("torch")

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    kinds = (torch.Tensor, torch.nn.Module)
    before = [kind.cuda for kind in kinds]
    for kind in kinds:
        kind.cuda = stay
    try:
        yield
    finally:
        for kind, cuda in zip(kinds, before, strict=True):
            kind.cuda = cuda
