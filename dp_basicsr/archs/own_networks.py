"""The project's own generators for spandrel's registry, recognised by the names and shapes of all their weights."""

from __future__ import annotations

import re

from dp_basicsr.archs.blocks import MSRResNet
from dp_basicsr.archs.rrdbnet_dp_arch import FoldedRRDBNet, RRDBNetDP
from dp_basicsr.checkpoint.weights import StateDict, compare_shapes
from dp_basicsr.errors import UserError
from dp_basicsr.utils.network_size import RRDBNET_FOLDS

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor, SizeRequirements
from torch import nn

NAMES = ("RRDBNetDP", "RRDBNet", "MSRResNet")  # RRDBNet: BasicSR's at x2 and x1, which folds its input

# BasicSR's RRDBNet at x2 and x1: input channels per colour after pixel-unshuffle -> scale.
FOLDED = {factor**2: scale for scale, factor in RRDBNET_FOLDS.items()}


class OwnArchitecture(Architecture[nn.Module]):
    """One of ``NAMES``; ``told`` is the scale of RRDBNetDP, whose tensors are the same at x2 and x3, if it is known."""

    def __init__(self, name: str, told: int | None) -> None:
        super().__init__(id=name, detect=self._fits)
        self.told = told

    def _fits(self, state: StateDict) -> bool:
        name, arguments = recognise(state)
        return name == self.id and not compare_shapes(build_network(name, **arguments).state_dict(), state)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """Build the network and fill it; a UserError if nothing tells whether RRDBNetDP is x2 or x3."""
        _, arguments = recognise(state_dict)
        # recognise says 2 for x3, too.
        if self.id == "RRDBNetDP" and arguments["scale"] == 2:
            if self.told is None:
                raise UserError(
                    "has one upsampling layer, which is the same at x2 and x3; neither the file nor an option file "
                    "beside its models/ folder says which: give --scale 2 or --scale 3"
                )
            arguments["scale"] = self.told
        # Empty, because spandrel's descriptor loads the weights.
        net = build_network(self.id, **arguments).to_empty(device="cpu")
        scale, channels = arguments["scale"], arguments["channels"]
        return ImageModelDescriptor(
            net,
            state_dict,
            architecture=self,
            purpose="SR" if scale > 1 else "Restoration",
            tags=describe(arguments),
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
            size_requirements=SizeRequirements(multiple_of=net.input_size.multiple),
        )


def registry(told: int | None) -> ArchRegistry:
    """Return spandrel's architectures, and before them the project's own; see ``OwnArchitecture`` for ``told``."""
    every = MAIN_REGISTRY.copy()
    # Before the first: spandrel's ESRGAN takes x3 for x2 and every growth for 32, and none of its detectors compares
    # all names and shapes, as ours do.
    first = every.architectures("detection")[0].architecture.id
    every.add(*(ArchSupport.from_architecture(OwnArchitecture(name, told), before=(first,)) for name in NAMES))
    return every


def build_network(
    name: str, *, scale: int, num_feat: int, num_block: int, num_grow_ch: int = 0, channels: int = 3
) -> FoldedRRDBNet | RRDBNetDP | MSRResNet:
    """Build one of ``NAMES`` without weights (on the meta device)."""
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
