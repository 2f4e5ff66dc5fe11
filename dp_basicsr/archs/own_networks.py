"""The project's own generators, and BasicSR's: recognised by their weights, and built."""

from __future__ import annotations

import re

from dp_basicsr.archs.blocks import MSRResNet
from dp_basicsr.archs.rrdbnet_dp_arch import FoldedRRDBNet, RRDBNetDP
from dp_basicsr.checkpoint.weights import StateDict
from dp_basicsr.utils.network_size import RRDBNET_FOLDS

import torch

# BasicSR's RRDBNet at x2 and x1: input channels per colour after pixel-unshuffle -> scale.
FOLDED = {factor**2: scale for scale, factor in RRDBNET_FOLDS.items()}


def build_network(
    name: str, *, scale: int, num_feat: int, num_block: int, num_grow_ch: int = 0, channels: int = 3
) -> FoldedRRDBNet | RRDBNetDP | MSRResNet:
    """Build RRDBNetDP, MSRResNet, or BasicSR's RRDBNet at x2 and x1; without weights (on the meta device)."""
    with torch.device("meta"):
        if name == "MSRResNet":
            return MSRResNet(channels, channels, num_feat, num_block, scale)
        if name == "RRDBNet":
            return FoldedRRDBNet(channels, scale, num_feat, num_block, num_grow_ch)
        return RRDBNetDP(channels, channels, scale, num_feat, num_block, num_grow_ch)


def recognise(state: StateDict) -> tuple[str, dict[str, int]]:
    """Return the generator that weights with BasicSR's names seem to be of, and its arguments for ``build_network``.

    The scale is 2 for x2 or x3 of RRDBNetDP. Only comparing all names and shapes proves it, see ``compare_shapes``.
    The name is empty for others.
    """
    first, last = (_shape(state, rf"{name}\.weight") for name in ("conv_first", "conv_last"))
    growth = _shape(state, r"body\.\d+\.rdb\d\.conv[1-4]\.weight")
    if first is None or last is None or (growth is None and "upconv1.weight" not in state):
        return "", {}
    # Counted, because a damaged file may contain any number, and that many blocks would be built.
    blocks = {match[1] for name in state if (match := re.match(r"body\.(\d+)\.", name))}
    arguments = {"num_feat": first[0], "num_block": max(len(blocks), 1), "channels": last[0]}
    if growth is None:
        shape = _shape(state, r"upconv1\.weight")
        triples = shape is not None and shape[0] == 9 * first[0]
        scale = 4 if "upconv2.weight" in state else 3 if triples else 2
        return "MSRResNet", arguments | {"scale": scale}
    arguments["num_grow_ch"] = growth[0]
    fold, rest = divmod(first[1], last[0])
    # Without conv_up1 it is ESRGAN x1, which spandrel knows.
    if first[1] == last[0] and "conv_up1.weight" in state:
        return "RRDBNetDP", arguments | {"scale": 4 if "conv_up2.weight" in state else 2}
    if fold in FOLDED and not rest:
        return "RRDBNet", arguments | {"scale": FOLDED[fold]}
    return "", {}


def describe(arguments: dict[str, int]) -> list[str]:
    """Return what people call the arguments of ``build_network``, except the scale."""
    words = [f"{arguments['num_block']} blocks", f"{arguments['num_feat']} features"]
    if "num_grow_ch" in arguments:
        words.append(f"growth {arguments['num_grow_ch']}")
    if arguments["channels"] != 3:
        words.append(f"{arguments['channels']} channel(s)")
    return words


def _shape(state: StateDict, pattern: str) -> tuple[int, ...] | None:
    """Return the shape of the first convolution whose name matches."""
    shapes = (tuple(value.shape) for name, value in state.items() if re.fullmatch(pattern, name))
    return next((shape for shape in shapes if len(shape) == 4 and all(shape)), None)
