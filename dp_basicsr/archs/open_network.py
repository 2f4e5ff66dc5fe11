"""Open the network in a file of weights: the project's own, and every one that spandrel recognises."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.archs.own_networks import build_network, describe, recognise
from dp_basicsr.checkpoint.opened_network import OpenedNetwork, as_paths
from dp_basicsr.checkpoint.weights import Weights, compare_shapes, interpolate, parts_of, read_weights
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.options import USED_OPTIONS, Options, read_options
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.input_size import InputSize
from dp_basicsr.utils.network_size import input_size, with_step

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# Side in pixels of the random image that a network is tried on when it is opened.
PROBE = 16


@torch.inference_mode(False)
def load_network(
    paths: str | Path | Sequence[str | Path], *, alpha_interp: float | None = None, scale: int | None = None
) -> OpenedNetwork:
    """Load a generator from a file of weights, or interpolate two.

    Args:
        paths: One file, or two: a PSNR model and a GAN model (in ESRGAN's order).
        alpha_interp: Share of the second file, 0 to 1 (default: 0.8, ESRGAN's example).
        scale: For the one case where neither the weights nor anything beside them tell (RRDBNetDP, x2 or x3).

    Raises:
        UserError: Files that cannot be read, do not fit, or do not fit each other; or another scale than ``scale``.
    """
    paths = as_paths(paths)
    if len(paths) not in (1, 2):
        way = "to average three, export two with --alpha_interp 0.5, and that with the third and 0.3333"
        raise UserError(f"--model_path: expected one model, or two to interpolate; got {len(paths)}; {way}")
    if len(paths) == 1 and alpha_interp is not None:
        raise UserError("--alpha_interp needs two models: --model_path PSNR.pth GAN.pth --alpha_interp 0.8")
    weights = read_weights(paths[0])
    if len(paths) == 2:
        weights = interpolate(weights, read_weights(paths[1]), 0.8 if alpha_interp is None else alpha_interp)
    # The weights that it begins with are drawn, from the numbers of the program that loads it.
    with torch.random.fork_rng(devices=[]):
        network = open_network(weights, scale)
    network.require_scale(scale)
    network.module.requires_grad_(False)
    return network


def open_network(weights: Weights, scale: int | None = None) -> OpenedNetwork:
    """Build the network that ``weights`` belong to, and load them.

    ``scale`` is needed only if nothing else tells whether RRDBNetDP is x2 or x3: the file, or the options of its run.
    Unknown weights, and those of a network that maps no image to an image, are a UserError.
    """
    name, arguments = recognise(weights.state)
    # Compared first: spandrel's ESRGAN takes x3 for x2 and every growth for 32.
    differences = compare_shapes(build_network(name, **arguments).state_dict(), weights.state) if name else ""
    if name and not differences:
        if name == "RRDBNetDP" and arguments["scale"] == 2:
            arguments["scale"] = _two_or_three(weights, scale)
        module: nn.Module = build_network(name, **arguments).to_empty(device="cpu")
        module.load_state_dict(weights.state)
        arch, factor, channels, tags = name, arguments["scale"], arguments["channels"], describe(arguments)
    else:
        looks = f"{name} x{arguments['scale']} ({', '.join(describe(arguments))})" if name else ""
        try:
            opened = _open_by_spandrel(weights, f" looks like {looks}, but has {differences}" if name else "")
            module, needs = _as_module(opened, weights.path), opened.size_requirements
            size = InputSize(needs.multiple_of, max(needs.minimum, 1), needs.square)
            module.input_size = with_step(opened.model, size, opened.input_channels)  # type: ignore[assignment]
            # Numbers that are no tensors, as SwinIR's img_range, are in the options alone.
            built = _built_by_run(weights, module)
        except UserError as error:
            # BasicSR's EDSR and its like have names of their own, but the run that trained them names the class.
            if (built := _built_by_run(weights)) is None:
                kind = options_of(weights).get("network_g", {}).get("type")
                networks, heads = dict[str, OpenedNetwork](), {name.partition(".")[0] for name in weights.state}
                of_heads = f", of {shorten(sorted(heads))}" if len(heads) > 1 else ""
                # One part of a class of your own would not be what was trained.
                for head, state in parts_of(weights.state).items() if not kind or len(heads) == 1 else ():
                    with contextlib.suppress(UserError):
                        inner = replace(weights, state=state, choice=weights.choice or f"weights {head}{of_heads}")
                        networks[head] = open_network(inner, scale)
                if len(networks) > 1:
                    way = "save one alone (docs/finetuning.md), or name it in path: param_key_g of a training or test"
                    raise UserError(f"model {weights.path} has the networks {', '.join(networks)}: {way}") from error
                if networks:
                    return networks.popitem()[1]
                if kind:
                    way = f"; `{advise('test', 'OPTIONS --import MODULE')}` upscales with a class of your own"
                    raise UserError(f"{error}; the options of its run name {kind}{way if name else ''}") from error
                raise
        if built:
            module, factor, channels = built
            name = arch = type(module).__name__
            tags, arguments = [], {}
            input_size(module)
        else:
            arch, factor, channels, tags = str(opened.architecture.id), opened.scale, opened.input_channels, opened.tags
            name = opened.architecture.name
    title = f"{name} x{factor}"
    if channels not in (1, 3):
        raise UserError(
            f"model {weights.path}: expected a network for RGB or gray, got {title} for {channels} channels"
        )
    return OpenedNetwork(
        weights.path.name,
        arch,
        factor,
        f"{title} ({', '.join(tags)})" if tags else title,
        weights.choice,
        channels,
        module.input_size,  # type: ignore[arg-type]
        {key: value for key, value in arguments.items() if key.startswith("num_")},
        weights.notes,
        module.eval().float(),
    )


def _built_by_run(weights: Weights, known: nn.Module | None = None) -> tuple[nn.Module, int, int] | None:
    """Return the network that the options of the weights' run name, its scale and channels.

    None if the weights are of another one, or if ``known`` gives the same pixels.
    """
    # No run, no BasicSR, a class of another package, other arguments; a training's random numbers stay as they are.
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
        from basicsr.archs import ARCH_REGISTRY

        options = options_of(weights)
        for _ in range(9):  # a run that continues another's network; two may name each other
            if options["network_g"]["type"] == "FromFile":
                options = options_of_run(Path(options["network_g"]["path"]).expanduser()) or {}
        arguments = dict(options["network_g"])
        channels = arguments.get("num_in_ch", arguments.get("in_chans", 3))  # the latter of SwinIR
        if (kind := arguments.pop("type")) == "FromFile":
            return None
        # Not by its `get`, which prints a line of a name without suffix, and of one that it lacks.
        classes = dict(iter(ARCH_REGISTRY))
        module: nn.Module = classes[kind if kind in classes else f"{kind}_basicsr"](**arguments)
        if not compare_shapes(module.state_dict(), weights.state) and arguments.get("num_out_ch", channels) == channels:
            module.load_state_dict(weights.state)
            if known is not None:
                image = torch.rand(1, channels, *known.input_size.fit(PROBE, PROBE))  # type: ignore[operator, union-attr]
                if torch.allclose(module.eval()(image), known.eval()(image), rtol=1e-4, atol=1e-5):
                    return None
            module.dp_options = {"type": kind, **arguments}  # type: ignore[assignment]
            return module, options["scale"], channels
    return None


def options_of(weights: Weights) -> Options:
    """Return the options of the run that wrote the weights: in the file, or beside it; empty if there are none."""
    with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
        options: Options = json.loads(weights.notes["options"])
        # A damaged file may contain any number of blocks, and that many would be built.
        if not re.search(r"\d{5}", json.dumps(options["network_g"])) and isinstance(options["network_g"], dict):
            return options
    return options_of_run(weights.path) or {}


def _two_or_three(weights: Weights, scale: int | None) -> int:
    """Return the scale of an RRDBNetDP whose tensors are those of x2 and x3; UserError if nothing tells it."""
    run = options_of(weights).get("network_g", {})
    # The first that tells: the caller, the file, or the options of its run.
    for text in map(str, (scale, weights.notes.get("scale"), run.get("scale"))):
        if text in ("2", "3"):
            return int(text)
    raise UserError(
        f"model {weights.path} has one upsampling layer, which is the same at x2 and x3; neither the file nor an "
        "option file beside its models/ folder says which: give --scale 2 or --scale 3"
    )


def _open_by_spandrel(weights: Weights, looks: str) -> ImageModelDescriptor[nn.Module]:
    """Return the network that spandrel recognises; ``looks`` is the reason why it may know none."""
    # It takes 0.2 s, and the project's own networks do not need it. Before 0.3 it has no Architecture, only its name.
    import spandrel
    from spandrel import MAIN_REGISTRY, Architecture, ImageModelDescriptor, UnsupportedModelError  # noqa: F401

    model, state = f"model {weights.path}", weights.state
    largest = max((int(number) for key in state for number in re.findall(r"\.(\d+)(?=\.)", key)), default=0)
    # spandrel takes the number of blocks from the names, and would build that many.
    if largest > 20 * len(state) + 100:
        raise UserError(f"{model} is damaged: it has a layer number {largest}")
    # A mere number in the file of Real-CUGAN tells spandrel that the network expects another range.
    flags = {"pro": torch.ones(1)} if "pro" in weights.notes else {}
    # Networks with licences that forbid some uses, if the user has installed them.
    with contextlib.suppress(Exception):
        import_module("spandrel_extra_arches").install(ignore_duplicates=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the networks' own code: old calls of torch, layers without values
            opened = MAIN_REGISTRY.load(dict(state) | flags)
    except Exception as error:  # any type, if names match but shapes do not
        # Whole numbers, and those of thop, are no weights: another version or a profiler left them.
        numbers = {name for name, value in state.items() if not value.is_floating_point() or "total_" in name}
        if unknown := {name for name in numbers if f'"{name}"' in str(error)}:
            rest = {name: value for name, value in state.items() if name not in unknown}
            return _open_by_spandrel(replace(weights, state=rest), looks)
        if looks:
            raise UserError(f"{model}{looks}") from error
        own = f"`{advise('test', 'OPTIONS --import MODULE')}` upscales with a class of your own"
        if isinstance(error, UnsupportedModelError):
            way = f"a newer spandrel may know more, spandrel_extra_arches adds SRFormer and others, and {own}"
            shapes = [value.shape for value in state.values() if value.ndim > 1]
            if shapes and shapes[0][1] == 3 and shapes[-1][0] == 1:  # from colours to one value
                way = "it looks like a discriminator: give the generator, net_g_*.pth, of the same run"
            raise UserError(
                f"{model}: expected a super-resolution network that this project or spandrel {spandrel.__version__} "
                f"knows, got {len(state)} tensors such as {shorten(list(state), 3)}; {way}"
            ) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{model} is damaged, incomplete or of another version: spandrel cannot build it ({reason}); {own}"
        ) from error
    expected, title = "expected a network that maps an image to one of as many channels", opened.architecture.name
    if not isinstance(opened, ImageModelDescriptor):
        raise UserError(f"{model}: {expected}, got {title} for {opened.purpose.lower()}, which needs a mask beside it")
    if (before := opened.input_channels) != (after := opened.output_channels):
        raise UserError(f"{model}: {expected}, got {title} x{opened.scale} from {before} channels to {after}")
    return opened


def options_of_run(path: Path) -> Options | None:
    """Return the options of the run that wrote ``experiments/<name>/models/<path>``.

    Returns:
        Those that its last start used, overrides included; of another program or version, the newest option file with
        ``name``, ``model_type``, ``network_g`` and ``datasets`` in its folder; None if there is none.
    """
    run = path.resolve().parent.parent
    if path.resolve().parent.name != "models":
        return None
    files = sorted(run.glob("*.yml"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in [run / USED_OPTIONS, *files]:
        with contextlib.suppress(UserError):
            # Another file beside the models must not keep the network from being opened.
            options = read_options(file)
            kinds = {"name": str, "model_type": str, "network_g": dict, "datasets": dict}
            if all(isinstance(options.get(key), kind) for key, kind in kinds.items()):
                return options
    return None


class SpandrelCall(nn.Module):
    """Wrap a network whose ``forward`` takes or gives more than an image; spandrel can call it."""

    def __init__(self, descriptor: ImageModelDescriptor[nn.Module]) -> None:
        super().__init__()
        self.net = descriptor.model
        self.descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        """Return the image, clipped to [0, 1]."""
        try:
            return self.descriptor(x)
        except RuntimeError:
            if len(x) == 1:
                raise
            # A gray network gets the three colours as a batch, which DRUNet's call does not take.
            return torch.cat([self.descriptor(image) for image in x.split(1)])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's weights by its own names, by which other programs know it."""
        return self.net.state_dict(*args, **kwargs)


def _as_module(opened: ImageModelDescriptor[nn.Module], path: Path) -> nn.Module:
    """Return the network itself if it maps an image to an image, otherwise wrap it; UserError if it cannot be run."""
    needs = opened.size_requirements
    sides = InputSize(needs.multiple_of, needs.minimum).fit(PROBE, PROBE)
    image = torch.rand(1, opened.input_channels, *sides, generator=torch.Generator().manual_seed(0))
    try:
        expected = opened(given := image.clone())
        if not torch.equal(given, image):  # RCAN scales it in place
            opened.model.register_forward_pre_hook(lambda _, args: args[0].clone())
    except Exception as error:
        raise UserError(f"model {path}: {opened.architecture.name} cannot be run ({error})") from error
    with contextlib.suppress(Exception), torch.no_grad():  # it may need more than an image
        output = opened.model.eval()(image)
        # spandrel clips what it returns; apart from that, both must agree to the bit.
        if isinstance(output, Tensor) and torch.equal(output.clamp(0, 1), expected):
            return opened.model
    return SpandrelCall(opened)
