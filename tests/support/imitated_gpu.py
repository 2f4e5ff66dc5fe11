"""A GPU imitated on the CPU: its tensors compute, but cannot be mixed with the CPU's, and copies from it are recorded.

What runs here has every tensor on the right device. Autocast, streams and kernels are not imitated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock, patch

import dp_basicsr  # noqa: F401 (makes basicsr importable)

import torch
from basicsr.models.base_model import BaseModel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

# Autograd needs no driver for the meta device; index 1 distinguishes ours from torch's own.
DEVICE = torch.device("meta", 1)
CPU = torch.device("cpu")

ATEN = torch.ops.aten
ADAM = sys.modules["torch.optim.adam"]  # torch.optim has no such attribute, which Python 3.10's patch would look for
FACTORIES = {torch.full, torch.ones, torch.zeros, torch.empty, torch.tensor, torch.rand, torch.randn, torch.arange}

# Operators whose result is a number on the CPU, or has a shape that depends on values: the program waits for the GPU.
WAITING = {ATEN._local_scalar_dense, ATEN.equal, ATEN.nonzero, ATEN.masked_select, ATEN._unique2}
COPYING = {ATEN._to_copy, ATEN.to}


class GPUTensor(Tensor):
    """A tensor whose values are in ``on_cpu``; the program has waited for each operator in ``waits``."""

    on_cpu: Tensor
    waits: list[str] = []  # noqa: RUF012 (of all tensors)

    @staticmethod
    def __new__(cls: type[GPUTensor], on_cpu: Tensor, requires_grad: bool = False) -> GPUTensor:
        layout = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset(), "dtype": on_cpu.dtype}
        made = Tensor._make_wrapper_subclass(cls, on_cpu.size(), device=DEVICE, requires_grad=requires_grad, **layout)
        made.on_cpu = on_cpu
        return made

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on the values."""
        kwargs = kwargs or {}
        mixed = {type(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0}
        if len(mixed) > 1 and func.overloadpacket is not ATEN.copy_:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        copies = func.overloadpacket in COPYING and CPU in tree_leaves((args, kwargs))
        if func.overloadpacket in WAITING or (copies and not kwargs.get("non_blocking")):
            cls.waits.append(str(func))
        result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        if copies:
            return result
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_far, result))


def _near(value: Any) -> Any:
    if type(value) is Tensor and value.is_meta:
        # Clamp's backward makes its 0 on the device by itself, where it has no value.
        return torch.zeros_like(value, device=CPU)
    return value.on_cpu if isinstance(value, GPUTensor) else CPU if value == DEVICE else value


def _far(value: Any) -> Any:
    return GPUTensor(value) if isinstance(value, Tensor) and not isinstance(value, GPUTensor) else value


class _Transfers(TorchFunctionMode):
    """Put tensors on the GPU: ``to`` and the functions that create tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = DEVICE in [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device)]
        if func in FACTORIES and named:
            return GPUTensor(func(*args, **kwargs | {"device": CPU, "requires_grad": False}))
        if func is Tensor.to and named and not isinstance(args[0], GPUTensor):
            near = func(args[0].detach(), *map(_near, args[1:]), **tree_map(_near, kwargs))
            return GPUTensor(near.clone(), args[0].is_leaf and args[0].requires_grad)
        if func is Tensor.type_as and isinstance(args[1], GPUTensor) and not isinstance(args[0], GPUTensor):
            return GPUTensor(func(args[0], args[1].on_cpu))
        if func is Tensor.new_tensor and isinstance(args[0], GPUTensor):
            return GPUTensor(func(args[0].on_cpu, *args[1:], **kwargs))
        return func(*args, **kwargs)


def _on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda device, *args, **kwargs: make("cpu" if device == "meta" else device, *args, **kwargs)


@contextmanager
def imitated_gpu() -> Iterator[list[str]]:
    """Imitate one GPU for BasicSR's models with ``num_gpu: 1``.

    Yields:
        The operators for which the program had to wait for the GPU, as they come.
    """
    start = BaseModel.__init__

    def start_on_gpu(model: BaseModel, opt: dict[str, Any]) -> None:
        start(model, opt)
        model.device = DEVICE if opt["num_gpu"] else CPU

    GPUTensor.waits = []
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            _Transfers(),
            patch.object(BaseModel, "__init__", start_on_gpu),
            patch("torch.autocast", _on_cpu(torch.autocast)),
            patch("torch.amp.GradScaler", _on_cpu(torch.amp.GradScaler)),
            patch.object(ADAM, "_device_dtype_check_for_fused", Mock()),
            patch("torch.cuda.get_device_name", lambda: "imitated"),
        ):
            yield GPUTensor.waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
