"""Recognise the project's own generators from the names and shapes of their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from dp_basicsr.checkpoint.weights import StateDict, Weights
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import RRDBNET_FOLDS

Arch = Literal["RRDBNetDP", "RRDBNet", "MSRResNet"]

# BasicSR's RRDBNet at x2 and x1: input channels per colour after pixel-unshuffle -> scale.
FOLDED = {factor**2: scale for scale, factor in RRDBNET_FOLDS.items()}


@dataclass(frozen=True)
class NetworkSpec:
    """Arguments of a generator, named as in BasicSR (``network_g`` of an option file).

    ``num_grow_ch`` is 0 for MSRResNet, which has none. ``channels`` is that of the images: 3 for RGB, 1 for gray.
    """

    arch: Arch
    scale: int
    num_feat: int
    num_block: int
    num_grow_ch: int = 0
    channels: int = 3

    @property
    def is_folded(self) -> bool:
        """Whether this is BasicSR's RRDBNet with pixel-unshuffle."""
        return self.arch == "RRDBNet"

    @property
    def multiple(self) -> int:
        """Divisor of the input's height and width."""
        return RRDBNET_FOLDS[self.scale] if self.is_folded else 1

    @property
    def has_twin(self) -> bool:
        """Whether RRDBNetDP has the same tensors at another scale (x2 and x3)."""
        return self.arch == "RRDBNetDP" and self.scale in (2, 3)

    def __str__(self) -> str:
        growth = f", growth {self.num_grow_ch}" if self.num_grow_ch else ""
        gray = "" if self.channels == 3 else f", {self.channels} channel(s)"
        return f"{self.arch} x{self.scale} ({self.num_block} blocks, {self.num_feat} features{growth}{gray})"


def guess_spec(state: StateDict) -> NetworkSpec | None:
    """Return the generator that a state_dict with BasicSR's names seems to belong to; x2 for x2 or x3.

    Only comparing all names and shapes proves it, see ``compare_shapes``.
    """
    first, last = (_shape(state, rf"{name}\.weight") for name in ("conv_first", "conv_last"))
    growth = _shape(state, r"body\.\d+\.rdb\d\.conv[1-4]\.weight")
    if first is None or last is None or (growth is None and "upconv1.weight" not in state):
        return None
    num_feat, channels, colours = first[0], first[1], last[0]
    # Counted, because a damaged file may contain any number, and that many blocks would be built.
    num_block = max(len({match[1] for name in state if (match := re.match(r"body\.(\d+)\.", name))}), 1)
    if growth is None:
        return NetworkSpec("MSRResNet", _resnet_scale(state, num_feat), num_feat, num_block, 0, colours)
    if channels == colours:
        if "conv_up1.weight" not in state:  # ESRGAN x1, which spandrel knows
            return None
        scale = 4 if "conv_up2.weight" in state else 2
        return NetworkSpec("RRDBNetDP", scale, num_feat, num_block, growth[0], colours)
    fold, rest = divmod(channels, colours)
    if fold not in FOLDED or rest:
        return None
    return NetworkSpec("RRDBNet", FOLDED[fold], num_feat, num_block, growth[0], colours)


def choose_scale(spec: NetworkSpec, weights: Weights, scale: int | None) -> NetworkSpec:
    """Choose between x2 and x3 for RRDBNetDP, which has the same tensors at both.

    Args:
        spec: From ``guess_spec``.
        weights: Its ``notes`` may contain the scale.
        scale: The user's choice; takes precedence.

    Raises:
        UserError: The scale is given in neither.
    """
    if not spec.has_twin:
        return spec
    for given in (scale, weights.notes.get("scale")):
        if str(given) in ("2", "3"):
            return replace(spec, scale=int(str(given)))
    raise UserError(
        f"model {weights.path} has one upsampling layer, which is the same at x2 and x3; neither the file nor an "
        "option file beside its models/ folder says which: give --scale 2 or --scale 3"
    )


def _resnet_scale(state: StateDict, num_feat: int) -> int:
    """Return the scale of MSRResNet: two x2 pixel-shuffles, or one with scale * scale * num_feat channels."""
    if "upconv2.weight" in state:
        return 4
    shape = _shape(state, r"upconv1\.weight")
    return 3 if shape is not None and shape[0] == 9 * num_feat else 2


def _shape(state: StateDict, pattern: str) -> tuple[int, ...] | None:
    """Return the shape of the first convolution whose name matches."""
    shapes = (tuple(value.shape) for name, value in state.items() if re.fullmatch(pattern, name))
    return next((shape for shape in shapes if len(shape) == 4 and all(shape)), None)
