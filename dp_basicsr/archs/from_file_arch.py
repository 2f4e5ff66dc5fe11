"""Build networks from a file of weights: the project's own, and every one that spandrel recognises."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.archs.blocks import MSRResNet
from dp_basicsr.archs.rrdbnet_dp_arch import FoldedRRDBNet, RRDBNetDP
from dp_basicsr.checkpoint.network_spec import NetworkSpec, choose_scale, guess_spec
from dp_basicsr.checkpoint.weights import Weights, compare_shapes, read_weights
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.registration import register
from dp_basicsr.utils.input_size import InputSize, with_step

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# Side in pixels of the random image that a network is tried on when it is opened.
PROBE = 16


@dataclass(frozen=True)
class OpenedNetwork:
    """A network with the weights of a file, in eval mode.

    Attributes:
        module: (N, channels, H, W) in [0, 1] -> (N, channels, scale * H, scale * W). Its ``input_size`` gives the
            supported H and W.
        arch: Name of the architecture, ours or spandrel's.
        description: Architecture, scale and size, for messages.
        scale: Output size divided by input size.
        channels: Input and output channels; 3: RGB, 1: gray.
        spec: Arguments of a network of this project; None for spandrel's.
    """

    module: nn.Module
    arch: str
    description: str
    scale: int
    channels: int
    spec: NetworkSpec | None = None


@register("arch")
def FromFile(path: str, scale: int | None = None, num_in_ch: int = 3) -> nn.Module:  # noqa: N802  (its name in options)
    """Build the network in a file with its weights, to continue training it.

    Args:
        path: ``.pth`` or ``.safetensors``; see ``read_weights``.
        scale: Required scale; the options pass their own ``scale``.
        num_in_ch: Required number of input and output channels.

    Returns:
        The network itself, so that saved weights keep the names of its own architecture.

    Raises:
        UserError: The network is unknown, has another scale or number of channels, or does not map an image to an
            image.
    """
    weights = read_weights(Path(path).expanduser())
    opened = open_network(weights, scale)
    if scale not in (None, opened.scale) or num_in_ch != opened.channels:
        raise UserError(
            f"network_g: path: expected a network x{scale} for images of {num_in_ch} channels, as in the options; "
            f"{path} is {opened.description}, for {opened.channels} channels"
        )
    logging.getLogger("basicsr").info(f"network_g: {path}: {opened.description} {weights.choice}".rstrip())
    if isinstance(opened.module, _SpandrelCall):
        raise UserError(f"network_g: path: {path} is {opened.description}, which does not map an image to an image")
    return opened.module.train().requires_grad_(True)


def build_network(spec: NetworkSpec) -> nn.Module:
    """Build one of the project's own generators, without weights (on the meta device)."""
    size = {"num_feat": spec.num_feat, "num_block": spec.num_block}
    with torch.device("meta"):
        if spec.arch == "MSRResNet":
            return MSRResNet(spec.channels, spec.channels, upscale=spec.scale, **size)
        if spec.is_folded:
            net: Any = FoldedRRDBNet(spec.channels, spec.scale, num_grow_ch=spec.num_grow_ch, **size)
        else:
            net = RRDBNetDP(spec.channels, spec.channels, spec.scale, num_grow_ch=spec.num_grow_ch, **size)
    net.input_size = InputSize(spec.multiple, fold=spec.multiple)
    return net


def open_network(weights: Weights, scale: int | None = None) -> OpenedNetwork:
    """Build the network that ``weights`` belong to, and load them.

    The project's own networks are tried first: spandrel takes RRDBNetDP x3 for x2, assumes a growth of 32, and does not
    know MSRResNet. Spandrel is imported only for other networks.

    Args:
        weights: See ``read_weights``.
        scale: Needed only if the weights leave it open (RRDBNetDP, x2 or x3).

    Raises:
        UserError: The architecture is unknown, or tensors are missing, unexpected or of another shape.
    """
    state = weights.state
    spec = guess_spec(state)
    differences = ""
    if spec is not None:
        differences = compare_shapes(build_network(spec).state_dict(), state)
        if not differences:
            return _open_own(choose_scale(spec, weights, scale), state)
    try:
        opened = _open_by_spandrel(weights)
    except UserError:
        if spec is None:
            raise
        opened = None  # the message below names the tensors
    if opened is not None:
        return opened
    if spec is not None:
        raise UserError(f"model {weights.path} looks like {spec}, but has {differences}")
    raise UserError(
        f"model {weights.path}: expected a super-resolution network that this project or spandrel knows, got "
        f"{len(weights.state)} tensors such as {shorten(list(weights.state), 3)}"
    )


def _open_own(spec: NetworkSpec, state: dict[str, Tensor]) -> OpenedNetwork:
    module = build_network(spec)
    module.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    return OpenedNetwork(module.eval(), spec.arch, str(spec), spec.scale, spec.channels, spec)


def _open_by_spandrel(weights: Weights) -> OpenedNetwork | None:
    """Return spandrel's network, or None if it does not recognise the weights.

    Raises:
        UserError: The recognised architecture does not match, or does not map an image to an image.
    """
    from spandrel import MAIN_REGISTRY, ImageModelDescriptor, UnsupportedModelError

    _require_plausible_numbers(weights)
    model = f"model {weights.path}"
    try:
        # A mere number in the file of Real-CUGAN tells spandrel that the network expects another range.
        flags = {"pro": torch.ones(1)} if "pro" in weights.notes else {}
        found = MAIN_REGISTRY.load(dict(weights.state) | flags)
    except UnsupportedModelError:
        return None
    except Exception as error:  # any type, if names match but shapes do not
        reason = _why_not(weights, error)
        raise UserError(f"{model} is damaged or incomplete: spandrel cannot build it ({reason})") from error
    name = f"{found.architecture.name} x{found.scale}"
    if not isinstance(found, ImageModelDescriptor) or found.input_channels != found.output_channels:
        raise UserError(f"{model}: expected a network that maps an image to one of as many channels, got {name}")
    if found.input_channels not in (1, 3):
        raise UserError(f"{model}: expected a network for RGB or gray, got {name} for {found.input_channels} channels")
    tags = f" ({', '.join(found.tags)})" if found.tags else ""
    required = found.size_requirements
    module = _as_module(found, weights.path)
    size = InputSize(required.multiple_of, max(required.minimum, 1), required.square)
    module.input_size = with_step(found.model, size, found.input_channels)  # type: ignore[assignment]
    return OpenedNetwork(module.eval(), str(found.architecture.id), name + tags, found.scale, found.input_channels)


def _why_not(weights: Weights, error: Exception) -> str:
    """Return what is wrong with weights that an architecture was recognised in, in one line."""
    for name in ("conv_first.weight", "conv_last.weight", "model.0.weight"):
        if name in weights.state and weights.state[name].ndim != 4:
            return f"expected 4 dimensions of {name}, got shape {tuple(weights.state[name].shape)}"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split())[:200] or type(error).__name__


class _SpandrelCall(nn.Module):
    """Wrap a network whose ``forward`` has other arguments or results than an image; spandrel knows how to call it."""

    def __init__(self, descriptor: ImageModelDescriptor[nn.Module]) -> None:
        super().__init__()
        self.net = descriptor.model
        self.descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        """Return the image, clipped to [0, 1]."""
        return self.descriptor(x)


def _as_module(found: ImageModelDescriptor[nn.Module], path: Path) -> nn.Module:
    """Return the network itself if it maps an image to an image, otherwise wrap it.

    Raises:
        UserError: Spandrel cannot run it either.
    """
    side = max(PROBE, found.size_requirements.minimum)
    side += -side % found.size_requirements.multiple_of
    image = torch.rand(1, found.input_channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        expected = found(image)
    except Exception as error:
        raise UserError(f"model {path}: {found.architecture.name} cannot be run ({error})") from error
    try:
        with torch.no_grad():
            output = found.model.eval()(image)
        same = isinstance(output, Tensor) and torch.equal(output.clamp(0, 1), expected)
    except Exception:  # it needs more than an image
        same = False
    return found.model if same else _SpandrelCall(found)


def _require_plausible_numbers(weights: Weights) -> None:
    """Refuse layers with implausible numbers, because spandrel would build that many."""
    largest = max((int(number) for name in weights.state for number in re.findall(r"\.(\d+)(?=\.)", name)), default=0)
    if largest > 20 * len(weights.state) + 100:
        raise UserError(f"model {weights.path} is damaged: it has a layer number {largest}")
