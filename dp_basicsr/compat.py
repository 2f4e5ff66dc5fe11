"""Bridges that let BasicSR 1.4.2 run with current torch, torchvision and numpy; the only version-dependent code.

BasicSR 1.4.2 (2022) is its last release. Each bridge states its purpose and when it can be removed. torch is imported
only when needed, so ``import dp_basicsr`` is fast and touches no device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import IO, Any

from dp_basicsr.registration import REGISTRIES, register_waiting

# Modules that BasicSR or its plugins import and that have, or will have, other names: torchvision 0.17, SciPy 2.0,
# BasicSR 1.4.
_RENAMED: Mapping[str, tuple[str, ...]] = {
    "torchvision.transforms.functional_tensor": ("torchvision.transforms._functional_tensor",),
    "scipy.ndimage.filters": ("scipy.ndimage",),
    "basicsr.losses.losses": ("basicsr.losses.basic_loss", "basicsr.losses.gan_loss"),
}


class _RenamedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find renamed modules under their old names, without which ``import basicsr`` fails.

    Many projects add theirs to a copy of BasicSR, ``basicsr/archs/safmn_arch.py``: in the current folder they are found
    too. The finder is *last* in ``sys.meta_path``: it is used only where the library itself has no such module.
    The names can be removed when a BasicSR release imports the new ones.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname in _RENAMED:
            return ModuleSpec(fullname, self)
        if not fullname.startswith("basicsr."):
            return None
        return PathFinder.find_spec(fullname, [os.path.join(os.getcwd(), *fullname.split(".")[:-1])])

    def exec_module(self, module: ModuleType) -> None:
        for name in reversed(_RENAMED[module.__name__]):
            renamed = vars(importlib.import_module(name))
            vars(module).update({key: value for key, value in renamed.items() if not key.startswith("__")})


def _add_colors(matlab_functions: Any) -> None:
    """Restore what BasicSR 1.4 moved to ``color_util``, until HAT's and SwinFIR's datasets import it there."""
    for name in {"bgr2ycbcr", "rgb2ycbcr", "ycbcr2bgr", "ycbcr2rgb"} - vars(matlab_functions).keys():
        setattr(matlab_functions, name, getattr(importlib.import_module("basicsr.utils.color_util"), name))


def _round_quality(degradations: Any) -> None:
    """Make JPEG qualities whole numbers, because OpenCV 5 takes no others, until BasicSR rounds those it draws."""
    compress = degradations.add_jpg_compression
    degradations.add_jpg_compression = lambda img, quality=90: compress(img, int(quality))


def _make_contiguous(diffjpeg: Any) -> None:
    """Make RealESRGANModel's JPEG images contiguous, because its ``filter2D`` cannot view others on a CPU.

    Can be removed when ``filter2D`` uses ``reshape``.
    """
    compress = diffjpeg.DiffJPEG.forward
    diffjpeg.DiffJPEG.forward = lambda self, x, quality: compress(self, x, quality).contiguous()


def _complete_base_model(base_model: Any) -> None:
    """Give every model any optimizer, scheduler and format of weights, and several processes on CPUs.

    BasicSR 1.4.2 has only Adam and two schedulers of its own, loads only one key of torch's files, and wraps
    networks for the current CUDA device. Can be removed with a release without these limits.
    """
    model = base_model.BaseModel
    on_cuda, setup_own_schedulers = model.model_to_device, model.setup_schedulers
    update_own_rate, library = model.update_learning_rate, importlib.import_module("dp_basicsr.utils.optimizers")

    def get_optimizer(self: Any, optim_type: str, params: Any, *rate: float, **settings: Any) -> Any:
        # StyleGAN2Model, and GFPGAN after it, give the rate by its position.
        settings |= dict(zip(("lr",), rate, strict=False))
        return library.make_optimizer(library.optimizers([optim_type])[optim_type], params, settings)

    def setup_schedulers(self: Any) -> None:
        settings = dict(self.opt["train"]["scheduler"])
        kind = library.schedulers().get(settings.pop("type"))
        if kind is None:
            setup_own_schedulers(self)
        else:
            self.schedulers += [kind(optimizer, **settings) for optimizer in self.optimizers]

    def update_learning_rate(self: Any, current_iter: int, warmup_iter: int = -1) -> None:
        # Many schedulers change the last rate, BasicSR's too, which must be theirs and not that of the warm-up.
        for scheduler in (known := [scheduler for scheduler in self.schedulers if hasattr(scheduler, "get_last_lr")]):
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
        if not known or type(self.schedulers[0]).__module__.startswith("basicsr."):
            update_own_rate(self, current_iter, warmup_iter)
            return
        for scheduler in self.schedulers:
            if current_iter > 1:
                scheduler.step()
            for group in scheduler.optimizer.param_groups if current_iter < warmup_iter else ():
                group["lr"] *= current_iter / warmup_iter

    def model_to_device(self: Any, net: Any) -> Any:
        if not self.opt["dist"] or self.device.type == "cuda":
            return on_cuda(self, net)
        find_unused = self.opt.get("find_unused_parameters", False)
        return base_model.DistributedDataParallel(net, find_unused_parameters=find_unused)

    model.get_optimizer, model.model_to_device = get_optimizer, model_to_device
    model.setup_schedulers, model.update_learning_rate = setup_schedulers, update_learning_rate
    model.load_network = importlib.import_module("dp_basicsr.models.base").PluginModel.load_network


# BasicSR module -> function that adds what it lacks after its import, in every program.
_INCOMPLETE: Mapping[str, Callable[[ModuleType], object]] = {
    REGISTRIES: register_waiting,
    "basicsr.utils.matlab_functions": _add_colors,
    "basicsr.data.degradations": _round_quality,
    "basicsr.ops.dcn.deform_conv": bool,  # lacks nothing: the first of the operators that BASICSR_JIT compiles
}


class _Completion(importlib.abc.MetaPathFinder):
    """Complete a module of BasicSR right after its import."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        complete = _INCOMPLETE.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if complete else None
        if complete is None or spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_and_complete(module: ModuleType) -> None:
            try:
                execute(module)
            except Exception as error:
                if not os.environ.pop("BASICSR_JIT", None):
                    raise
                print(f"warning: BASICSR_JIT: going on without compiled operators ({error})", file=sys.stderr)
                execute(module)
            complete(module)

        spec.loader.exec_module = exec_and_complete  # type: ignore[method-assign]
        return spec


def _open_utf8(file: Any, mode: str = "r") -> IO[Any]:
    return open(file, mode, encoding=None if "b" in mode else "utf-8-sig")  # a byte order mark is no part of a name


def read_lists_as_utf8() -> None:
    """Make BasicSR's datasets read text files (``meta_info_file``) as UTF-8 instead of in the locale's encoding.

    Can be removed when a BasicSR release specifies the encoding.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("basicsr.data."):
            vars(module)["open"] = _open_utf8


@functools.cache
def complete_basicsr() -> None:
    """Replace what is incomplete in BasicSR when one of our programs starts: a stranger's has methods of its own."""
    importlib.import_module("dp_basicsr.archs.pretrained").use_our_weights()
    _make_contiguous(importlib.import_module("basicsr.utils.diffjpeg"))
    _complete_base_model(importlib.import_module("basicsr.models.base_model"))
    # The log's ETA and seconds per iteration, which a clock that is set would make negative or days too long.
    vars(importlib.import_module("basicsr.utils.logger"))["time"] = SimpleNamespace(time=time.monotonic)


def install() -> None:
    """Install the bridges of every program. Can be called repeatedly, and after ``import basicsr`` if that works."""
    if any(isinstance(finder, _RenamedModules) for finder in sys.meta_path):
        return
    sys.meta_path.append(_RenamedModules())
    sys.meta_path.insert(0, _Completion())
    for name, complete in _INCOMPLETE.items():
        if name in sys.modules:
            complete(sys.modules[name])


# Models that use their device; others may call `.cuda()`.
ON_ANY_DEVICE = ("ESRGANDPModel", "SRGANDPModel", "PSNRModel", "ESRGANModel", "SRGANModel", "SRModel")


@contextlib.contextmanager
def without_cuda(on_cpu: bool) -> Iterator[None]:
    """Make ``.cuda()`` return the tensor or module itself, in a run on the CPU (``num_gpu: 0``).

    BasicSR's RealESRGANModel and RealESRNetModel, and models derived from them, call it unconditionally. Can be removed
    when they use ``self.device``.
    """
    torch = importlib.import_module("torch")
    kinds = (torch.Tensor, torch.nn.Module) if on_cpu else ()
    before = [kind.cuda for kind in kinds]
    for kind in kinds:
        kind.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        for kind, cuda in zip(kinds, before, strict=True):
            kind.cuda = cuda


def without_buffer_sync() -> dict[str, Any]:
    """Return the argument that keeps DistributedDataParallel from sending buffers in each forward pass.

    torch 2.13 renamed it and warns of the old name, on each process. Can be removed when torch 2.13 is the oldest.
    """
    known = inspect.signature(importlib.import_module("torch.nn.parallel").DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
