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
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import IO, Any

# Of torch.optim, by name.
OPTIMIZERS = ("Adam", "AdamW", "Adamax", "SGD", "ASGD", "RMSprop", "Rprop")

_REMOVED_MODULE = "torchvision.transforms.functional_tensor"


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


def _add_rgb2ycbcr(matlab_functions: Any) -> None:
    """BasicSR 1.4 moved it to ``color_util``; HAT's datasets import it from here. Can go when HAT no longer does."""
    if not hasattr(matlab_functions, "rgb2ycbcr"):
        matlab_functions.rgb2ycbcr = importlib.import_module("basicsr.utils.color_util").rgb2ycbcr


def _make_contiguous(diffjpeg: Any) -> None:
    """Let RealESRGANModel's JPEG images be contiguous: on a CPU its ``filter2D`` cannot view others after padding.

    It can go when ``filter2D`` uses ``reshape``.
    """
    compress = diffjpeg.DiffJPEG.forward
    diffjpeg.DiffJPEG.forward = lambda self, x, quality: compress(self, x, quality).contiguous()


def _add_optimizers(base_model: Any) -> None:
    """Let every model use the optimizers that BasicSR's repository has; 1.4.2 has Adam alone.

    It can go with the next BasicSR release.
    """
    base_model.BaseModel.get_optimizer = lambda self, optim_type, params, lr, **settings: getattr(
        importlib.import_module("torch.optim"), optim_type
    )(params, lr, **settings)


# Modules of BasicSR, and what completes them once they are imported.
_INCOMPLETE: Mapping[str, Callable[[ModuleType], None]] = MappingProxyType(
    {
        "basicsr.utils.matlab_functions": _add_rgb2ycbcr,
        "basicsr.utils.diffjpeg": _make_contiguous,
        "basicsr.models.base_model": _add_optimizers,
    }
)


class _Completion(importlib.abc.MetaPathFinder):
    """Complete a module of BasicSR right after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        complete = _INCOMPLETE.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if complete else None
        if complete is not None and spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_and_complete(module: ModuleType) -> None:
                execute(module)
                complete(module)

            spec.loader.exec_module = exec_and_complete  # type: ignore[method-assign]
        return spec


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
    sys.meta_path.insert(0, _Completion())
    for name, complete in _INCOMPLETE.items():
        if name in sys.modules:
            complete(sys.modules[name])


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
