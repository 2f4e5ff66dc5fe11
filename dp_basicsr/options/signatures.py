"""The keys that a registered class takes: its own signature, as a pydantic model.

BasicSR hands a mapping such as ``network_g`` to the class that its ``type`` names, key by key. Types come from the
annotations (our classes have them); where there are none (BasicSR's), from the defaults. VALUES has what neither says.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal

import dp_basicsr.data.stream
import dp_basicsr.losses
import dp_basicsr.metrics
import dp_basicsr.models  # noqa: F401  (these, and BasicSR's below, register their members)
from dp_basicsr.archs.any_network_arch import TIMM, TORCHVISION_TYPES
from dp_basicsr.archs.perceptual_arch import RESNET_STAGES, RESNET_TYPES, VGG_TYPES
from dp_basicsr.archs.rrdbnet_dp_arch import UPSAMPLING
from dp_basicsr.compat import OPTIMIZERS
from dp_basicsr.errors import UserError
from dp_basicsr.losses.dual_perceptual_loss import parse_channels
from dp_basicsr.utils.option_schema import Count, Decay, FromZero, NonNegative, Positive, Section

import basicsr.archs
import basicsr.data
import basicsr.losses
import basicsr.metrics
import basicsr.models  # noqa: F401
import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import AfterValidator, Field, create_model

Number = int | float
Size = Annotated[int, Field(ge=1)]
REQUIRED: Any = ...


@dataclass(frozen=True)
class Kind:
    """What a mapping with a ``type`` can be.

    Attributes:
        what: In a message.
        classes: By the names that ``type`` can take.
        given: Parameters that the program gives by itself.
        more: Keys that are read by others than the class: name, type, default.
    """

    what: str
    classes: Mapping[str, Callable[..., Any]]
    given: tuple[str, ...] = ()
    more: tuple[tuple[str, Any, Any], ...] = ()


# The keys of a term of DPLoss that are its own; the others go to the term's class.
TERM_RULE: tuple[tuple[str, Any, Any], ...] = (
    ("name", str, None),
    ("mu", Positive, None),
    ("eps", NonNegative, None),
    ("dynamic_weighting", bool, None),
    ("static_weight", NonNegative, None),
    ("max_weight", Positive | None, None),
)

_SCHEDULERS = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}


def kinds() -> dict[str, Kind]:
    """The kind of each key of an option file whose value has a ``type``; registries are read anew at every call."""
    network, loss = Kind("network", members_of(ARCH_REGISTRY)), Kind("loss", members_of(LOSS_REGISTRY))
    optimizer = Kind("optimizer", {name: getattr(torch.optim, name) for name in OPTIMIZERS}, ("params",))
    gan = Kind("loss", loss.classes, more=(("sync_mean", bool, None),))
    return {
        "network_g": network,
        "network_d": network,
        "train:pixel_opt": loss,
        "train:perceptual_opt": loss,
        "train:ldl_opt": loss,
        "train:gan_opt": gan,
        "train:optim_g": optimizer,
        "train:optim_d": optimizer,
        "train:scheduler": Kind("scheduler", _SCHEDULERS, ("optimizer", "last_epoch")),
        "val:metrics": Kind(
            "metric",
            members_of(METRIC_REGISTRY),
            ("img", "img2"),
            (("better", Literal["higher", "lower"], "higher"),),
        ),
    }


def members_of(registry: Any) -> dict[str, Callable[..., Any]]:
    """BasicSR registers what other packages may name as well as ``<name>_basicsr``, and finds it by both names."""
    members = dict(iter(registry))  # a Registry has keys(), and so looks like a mapping, but is none
    return {name.removesuffix("_basicsr"): member for name, member in members.items()} | members


def _channels(value: Any) -> Any:
    try:
        parse_channels(value)
    except UserError as error:
        raise ValueError("repeat, or triples of indices such as [3, 2, 1]") from error
    return value


def _network(value: str) -> str:
    if value not in (*VGG_TYPES, *RESNET_TYPES, *TORCHVISION_TYPES) and not value.startswith(TIMM):
        raise ValueError(f"a classification network of torchvision, or {TIMM}<name>")
    return value


def loss_term() -> Kind:
    """A registered loss as a term of DPLoss."""
    return Kind("loss", members_of(LOSS_REGISTRY), more=TERM_RULE)


def network_term() -> type[Section]:
    """The keys of a feature network as a term of DPLoss."""
    return create_model(
        "NetworkTerm",
        __base__=Section,
        network=(Annotated[str, AfterValidator(_network)], REQUIRED),
        layer_weights=(Annotated[dict[str, float], Field(min_length=1)], REQUIRED),
        weights=(str, "imagenet"),
        use_input_norm=(bool, True),
        batch_stats=(bool, False),
        **{name: (kind, default) for name, kind, default in TERM_RULE},  # type: ignore[call-overload]
    )


_ADAM = {
    "betas": Annotated[list[Decay], Field(min_length=2, max_length=2)],
    "eps": NonNegative,
    "amsgrad": bool,
    "foreach": bool | None,
    "fused": bool | None,
    "capturable": bool,
    "differentiable": bool,
    "maximize": bool,
}

# What signatures do not say: name of the class (or "" for any) -> parameter -> type.
VALUES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "": {
            "loss_weight": NonNegative,
            "scale": Size,
            "upscale": Size,
            "input_size": Size,
            "lr": Positive,
            "weight_decay": NonNegative,
        },
        "Adam": _ADAM,
        "AdamW": _ADAM,
        "MultiStepRestartLR": {
            "milestones": list[Count],
            "gamma": Positive,
            "restarts": list[FromZero],
            "restart_weights": list[NonNegative],
        },
        "CosineAnnealingRestartLR": {
            "periods": Annotated[list[Count], Field(min_length=1)],
            "restart_weights": list[NonNegative],
            "eta_min": NonNegative,
        },
        "RRDBNetDP": {"scale": Literal[tuple(UPSAMPLING)]},  # type: ignore[valid-type]
        "MSRResNet": {"upscale": Literal[2, 3, 4]},
        "VGGStyleDiscriminator": {"input_size": Literal[128, 256]},
        "GANLoss": {"gan_type": Literal["vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"]},
        "L1Loss": {"reduction": Literal["mean", "sum"]},  # `none` would leave no number to minimise
        "MSELoss": {"reduction": Literal["mean", "sum"]},
        "CharbonnierLoss": {"reduction": Literal["mean", "sum"], "eps": Positive},
        "PerceptualLoss": {
            "layer_weights": dict[str, float],
            "criterion": Literal["l1", "l2", "fro"],
            "perceptual_weight": NonNegative,
            "style_weight": NonNegative,
        },
        "DPLoss": {
            "mu": Positive,
            "eps": NonNegative,
            "vgg_type": Literal[VGG_TYPES],  # type: ignore[valid-type]
            "resnet_type": Literal[RESNET_TYPES],  # type: ignore[valid-type]
            "vgg_layer_weights": dict[str, float],
            "resnet_layer_weights": dict[Literal[RESNET_STAGES], float],  # type: ignore[valid-type]
            "static_weight": NonNegative,
            "max_weight": Positive | None,
            "input_channels": Annotated[Literal["repeat"] | list[Any] | None, AfterValidator(_channels)],
        },
        "calculate_psnr": {"crop_border": FromZero, "input_order": Literal["HWC", "CHW"]},
        "calculate_ssim": {"crop_border": FromZero, "input_order": Literal["HWC", "CHW"]},
        "calculate_lpips": {
            "crop_border": FromZero,
            "input_order": Literal["HWC", "CHW"],
            "net": Literal["alex", "vgg"],
        },
    }
)


@lru_cache
def model_of(
    member: Callable[..., Any], given: tuple[str, ...] = (), more: tuple[tuple[str, Any, Any], ...] = ()
) -> type[Section]:
    """The keys of a registered class or function, with ``type``; see :class:`Kind`."""
    init = member.__init__ if inspect.isclass(member) else member  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(init, include_extras=True)
    except Exception:  # another plugin's annotations may name what is imported for type checkers only
        hints = {}
    named = {**VALUES[""], **VALUES.get(member.__name__, {})}
    fields: dict[str, Any] = {"type": (str, REQUIRED), **{name: (kind, default) for name, kind, default in more}}
    for name, parameter in inspect.signature(member).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in given:
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        default = dict(default) if isinstance(default, Mapping) else default
        size = Size if name.startswith("num_") and not isinstance(default, (list, tuple)) else None
        fields[name] = (named.get(name) or size or _our_hint(hints, name, member) or _type_of(default), default)
    return create_model(member.__name__, __base__=Section, __doc__=f"Signature of {member.__name__}.", **fields)


def _our_hint(hints: Mapping[str, Any], name: str, member: Callable[..., Any]) -> Any:
    """An annotation; those of others are not written for YAML (a tuple would refuse a list)."""
    return hints.get(name) if member.__module__.startswith("dp_basicsr.") else None


def _type_of(default: Any) -> Any:
    """What a parameter without annotation takes, by its default; an int stands for any number."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, (int, float)):
        return Number
    if isinstance(default, str):
        return str | None
    return list[Any] if isinstance(default, (list, tuple)) else Any


def takes_more(member: Callable[..., Any]) -> bool:
    """Whether a class takes any further key (``**kwargs``)."""
    return any(one.kind == one.VAR_KEYWORD for one in inspect.signature(member).parameters.values())
