"""Find out what input sizes a network takes, and where tiles of an image may start."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dp_basicsr.utils.input_size import InputSize

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# BasicSR's RRDBNet applies pixel-unshuffle at these scales: scale -> factor.
RRDBNET_FOLDS = {2: 2, 1: 4}

# Names under which transformers keep the side of their windows, and U-Nets what they pad to, in pixels of their layers.
WINDOWS = ("window_size", "win_size", "split_size", "stripe_size", "patch_size", "ws")
STRIDES = ("padder_size",)
PROBE = 192  # side of the image that shows a network's strides: a multiple of the usual windows
SMALLEST = 6  # side of a layer, of PROBE, that is still an image: less are weights, or means over the whole image
RESAMPLING = frozenset({"conv2d", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d",
                        "interpolate", "boolean_dispatch", "pixel_unshuffle"})  # fmt: skip


def input_size(net: nn.Module) -> InputSize:
    """Return the requirements of a network, bare or wrapped by DistributedDataParallel.

    A network opened from a file has them in its attribute ``input_size``. For others they are derived from common
    properties of super-resolution networks, and kept there: the ``window_size`` of transformers (SwinIR, HAT), the
    pixel-unshuffle of BasicSR's RRDBNet at x2 and x1, and modules of type ``nn.PixelUnshuffle``.

    Use it with ``run_padded``, which pads and crops::

        size = input_size(net)
        output = run_padded(net, images, size, scale)

    and cut tiles by ``dp_basicsr.utils.tiles.blend_tiles``, which takes ``size`` too.
    """
    net = getattr(net, "module", net)
    known = getattr(net, "input_size", None)
    if isinstance(known, InputSize):
        return known
    factors = [module.downscale_factor for module in net.modules() if isinstance(module, nn.PixelUnshuffle)]
    # By name, because this must also run where BasicSR is not installed.
    if any(kind.__name__ == "RRDBNet" for kind in type(net).__mro__):
        factors.append(RRDBNET_FOLDS.get(getattr(net, "scale", 4), 1))
    size = InputSize(math.lcm(*factors, *_sides(net.modules(), ("window_size",))))
    net.input_size = size = with_step(net, size)  # type: ignore[assignment]
    return size


def with_step(net: nn.Module, size: InputSize, channels: int = 3) -> InputSize:
    """Return ``size`` with ``step``, ``fold`` and ``is_global``, from the network's windows and what its layers do.

    The network runs on images of three sizes, on torch's meta device, which computes shapes alone. If it cannot be run
    so, the step is that of its windows. One that does not take the third, as a U-Net whose halves must meet, takes
    multiples of its step.
    """
    # The copy shares the weights. It is needed because some networks keep what they computed last as an attribute.
    shared = {id(tensor): tensor for tensor in itertools.chain(net.parameters(), net.buffers())}
    height, width = size.fit(PROBE, PROBE)
    small, large = _Watch(height), _Watch(2 * height)

    def run(watch: _Watch, height: int, width: int) -> None:
        twin = copy.deepcopy(net, shared).eval()
        for module in twin.modules():
            # Those there are belong to others, who expect values.
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
            if _sides([module], WINDOWS) != {1}:
                module.register_forward_pre_hook(watch.note_windows)
        image = torch.zeros(1, channels, height, width, device="meta")
        with warnings.catch_warnings(), torch.no_grad(), torch.device("meta"), watch:
            warnings.simplefilter("ignore")
            twin(image)

    takes_all = True
    try:
        run(small, height, width)
        run(large, 2 * height, 2 * width)
        try:
            run(_Watch(height), *size.fit(height + 1, width + 1))
        except RuntimeError:
            takes_all = False
        # An image of four times as many pixels: what then gets four times as large is computed from neighbours.
        pairs = zip(small.numbers, large.numbers, strict=True)
        growth = [(many[0] / few[0], many[1] / few[1]) for few, many in pairs]
        steps, folds = small.steps, small.folds
        is_global = small.has_norm or any(taken > 1 and given != taken for taken, given in growth)
    except Exception:
        # It asks for values, which there are none of, or for more than an image.
        steps, folds, is_global = {1}, [], False
    modules = list(net.modules())
    step = math.lcm(*steps, *_sides(modules, WINDOWS), *_sides(modules, STRIDES))
    # The first convolution shows what is folded before it; later ones also have the network's strides.
    multiple, fold = size.multiple if takes_all else step, max(folds[0] if folds else 1, 1)
    return replace(size, multiple=multiple, step=step, fold=fold, is_global=is_global)


class _Watch(TorchFunctionMode):
    """Watches a network that runs on an image without values."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side  # of the image
        self.steps = {1}  # grids of strides and windows, in pixels of the image
        self.folds: list[int] = []  # side of the image over those of the convolutions' inputs
        self.numbers: list[tuple[int, int]] = []  # values that each function takes and gives
        self.has_norm = False  # whether a layer computes statistics of its whole input

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [1]

        def on_meta(value: Tensor) -> Tensor:
            if not value.is_meta:
                return value.to("meta")
            taken.append(value.numel())
            return value

        # Moving the arguments is none of the network's work, and must not be watched.
        with torch._C.DisableTorchFunction():
            args, kwargs = tree_map_only(Tensor, on_meta, (args, kwargs or {}))
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        name = getattr(func, "__name__", "").strip("_")
        self.has_norm |= name in ("group_norm", "instance_norm")
        if not args or result.shape != getattr(args[0], "shape", None):
            # Of the images alone: weights were not on the meta device, and on_meta has not counted them.
            self.numbers.append((max(taken), max(result.numel(), 1)))
        # Several images where there was one are windows, which have their own sides.
        if name in RESAMPLING and result.ndim == 4 and len(result) == 1:
            if name == "conv2d" and args[0].shape[-2] >= SMALLEST:
                self.folds.append(round(self.side / args[0].shape[-2]))
            if result.shape[-2] >= SMALLEST:
                self.steps.add(max(round(self.side / result.shape[-2]), 1))
        return result

    def note_windows(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Images as (1, C, H, W) or (1, H, W, C), tokens as (1, H * W, C); several are windows already.
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        if len(shape) in (3, 4) and shape[0] == 1:
            side = shape[2] if len(shape) == 4 else math.isqrt(shape[1])
            if side >= SMALLEST:
                self.steps.update(max(round(self.side / side), 1) * window for window in _sides([module], WINDOWS))


def _sides(modules: Iterable[nn.Module], names: tuple[str, ...]) -> set[int]:
    """Return 1 and the positive numbers that modules have under ``names``."""
    values = [getattr(module, name, 1) for module in modules for name in names]
    flat = [side for value in values for side in (value if isinstance(value, (list, tuple)) else [value])]
    return {side for side in flat if isinstance(side, int) and side > 0} | {1}
