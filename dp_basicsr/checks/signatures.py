"""The keys that a registered class accepts: its signature as a pydantic model.

BasicSR passes a mapping such as ``network_g`` as arguments to the class that its ``type`` names. Types come from the
annotations (our classes) or else from the defaults (BasicSR's). VALUES has what neither says.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import dp_basicsr.data.datasets
import dp_basicsr.losses
import dp_basicsr.metrics
import dp_basicsr.models  # noqa: F401  (these, and BasicSR's below, register their members)
from dp_basicsr.archs.any_network_arch import TIMM, TORCHVISION_TYPES
from dp_basicsr.archs.perceptual_arch import RESNET_STAGES, RESNET_TYPES, VGG_TYPES
from dp_basicsr.archs.rrdbnet_dp_arch import UPSAMPLING
from dp_basicsr.errors import UserError
from dp_basicsr.losses.dual_perceptual_loss import parse_channels
from dp_basicsr.options.section import Count, Decay, FromZero, NonNegative, Positive, Section
from dp_basicsr.utils.optimizers import optimizers, schedulers, why_not_optimizer, why_not_scheduler

import basicsr.archs
import basicsr.data
import basicsr.losses
import basicsr.metrics
import basicsr.models  # noqa: F401
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import AfterValidator, ConfigDict, Field, create_model

Size = Annotated[int, Field(ge=1)]
REQUIRED: Any = ...


@dataclass(frozen=True)
class TypedEntry:
    """The classes that the ``type`` of a mapping can name."""

    what: str  # for messages
    classes: Mapping[str, Callable[..., Any]]  # by name
    given: tuple[str, ...] = ()  # parameters that the program supplies
    more: tuple[tuple[str, Any, Any], ...] = ()  # keys that are not parameters of the class: name, type, default
    expected: str = ""  # what a class must do, which its signature does not tell
    why_not: Callable[..., str | None] | None = None  # tries a class with its settings; why it is not as expected


# How a DPLoss weighs a term: keys of the loss, and of each of its terms.
RULE: Mapping[str, Any] = {
    "mu": Positive,
    "eps": NonNegative,
    "dynamic_weighting": bool,
    "static_weight": NonNegative,
    "max_weight": Positive | None,
}
# Keys of a DPLoss term itself; the others are arguments of the term's class.
TERM: tuple[tuple[str, Any, Any], ...] = (("name", str, None), *((name, kind, None) for name, kind in RULE.items()))

# BasicSR builds its own class for both of the first two names.
_SCHEDULERS = {
    "MultiStepLR": MultiStepRestartLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
}


def typed_entries(wanted: Collection[Any] = ()) -> dict[str, TypedEntry]:
    """Return the classes for each option with a ``type``, ``wanted`` optimizers among them, as registered now."""
    network, loss = TypedEntry("network", members_of(ARCH_REGISTRY)), TypedEntry("loss", members_of(LOSS_REGISTRY))
    expected = "an optimizer that steps on dense gradients of weights of any shape, without a closure, and resumes"
    optimizer = TypedEntry("optimizer", optimizers(wanted), ("params",), (), expected, why_not_optimizer)
    expected = "a scheduler that steps by iteration, and resumes (MultiStepLR ...; val: patience watches metrics)"
    given = ("optimizer", "last_epoch")
    scheduler = TypedEntry("scheduler", _SCHEDULERS | schedulers(), given, (), expected, why_not_scheduler)
    better = ("better", Literal["higher", "lower"], "higher")
    # Our models take both keys out before they build the loss.
    gan = TypedEntry("loss", loss.classes, more=(("sync_mean", bool, None), ("ramp", Count | None, None)))
    return {
        "network_g": network,
        "network_d": network,
        "train:pixel_opt": loss,
        "train:perceptual_opt": loss,
        "train:ldl_opt": loss,
        "train:gan_opt": gan,
        "train:optim_g": optimizer,
        "train:optim_d": optimizer,
        "train:scheduler": scheduler,
        "val:metrics": TypedEntry("metric", members_of(METRIC_REGISTRY), ("img", "img2"), (better,)),
    }


def members_of(registry: Any) -> dict[str, Callable[..., Any]]:
    """Return a registry's classes; like BasicSR, find ``<name>_basicsr`` by both names."""
    # A Registry has keys(), so dict() would take it for a mapping, which it is not.
    members = dict(iter(registry))
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


# A feature network as a DPLoss term.
NetworkTerm = create_model(
    "NetworkTerm",
    __base__=Section,
    network=(Annotated[str, AfterValidator(_network)], REQUIRED),
    layer_weights=(Annotated[dict[str, float], Field(min_length=1)], REQUIRED),
    weights=(str, "imagenet"),
    use_input_norm=(bool, True),
    batch_stats=(bool, False),
    **{name: (kind, default) for name, kind, default in TERM},  # type: ignore[call-overload]
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

# Types missing from signatures: class name (or "" for any) -> parameter -> type.
VALUES: Mapping[str, Mapping[str, Any]] = {
    "": {
        "loss_weight": NonNegative,
        "scale": Size,
        "upscale": Size,
        "input_size": Size,
        "lr": Positive,
        "weight_decay": NonNegative,
        "crop_border": FromZero,
        "input_order": Literal["HWC", "CHW"],
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
    # It takes any other text for an x1 network, or fails in its first step.
    "SwinIR": {
        "upsampler": Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "", None],
        "resi_connection": Literal["1conv", "3conv"],
        "window_size": Size,
        "embed_dim": Size,
        "num_heads": list[Size],
    },
    "VGGStyleDiscriminator": {"input_size": Literal[128, 256]},
    "GANLoss": {"gan_type": Literal["vanilla", "lsgan", "wgan", "wgan_softplus", "hinge"]},
    # `none` would not return a scalar, which backward needs.
    "L1Loss": {"reduction": Literal["mean", "sum"]},
    "MSELoss": {"reduction": Literal["mean", "sum"]},
    "CharbonnierLoss": {"reduction": Literal["mean", "sum"], "eps": Positive},
    "PerceptualLoss": {
        "vgg_type": Literal[VGG_TYPES],  # type: ignore[valid-type]
        "layer_weights": dict[str, float],
        "criterion": Literal["l1", "l2", "fro"],
        "perceptual_weight": NonNegative,
        "style_weight": NonNegative,
    },
    "DPLoss": {
        **RULE,
        "vgg_type": Literal[VGG_TYPES],  # type: ignore[valid-type]
        "resnet_type": Literal[RESNET_TYPES],  # type: ignore[valid-type]
        "vgg_layer_weights": dict[str, float],
        "resnet_layer_weights": dict[Literal[RESNET_STAGES], float],  # type: ignore[valid-type]
        "input_channels": Annotated[Literal["repeat"] | list[Any] | None, AfterValidator(_channels)],
    },
}


class Signature(Section):
    """The base of models that are made from signatures."""

    # There is no source to search for docstrings of attributes, which takes 30 ms.
    model_config = ConfigDict(use_attribute_docstrings=False)


@lru_cache
def model_of(
    member: Callable[..., Any], given: tuple[str, ...] = (), more: tuple[tuple[str, Any, Any], ...] = ()
) -> type[Section]:
    """Return the model of a registered class or function, with ``type``; see ``TypedEntry``."""
    hints: dict[str, Any] = {}
    # Those of others are not written for YAML (a tuple would refuse a list).
    if member.__module__.startswith("dp_basicsr."):
        init = member.__init__ if inspect.isclass(member) else member  # type: ignore[misc]
        hints = typing.get_type_hints(init, include_extras=True)
    named = {**VALUES[""], **VALUES.get(member.__name__, {})}
    fields: dict[str, Any] = {"type": (str, REQUIRED), **{name: (kind, default) for name, kind, default in more}}
    for name, parameter in inspect.signature(member).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in given:
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        # Ours are read-only mappings, of which pydantic cannot copy a default.
        default = dict(default) if isinstance(default, Mapping) else default
        # BasicSR's networks have no annotations: `num_feat`, `num_block` and the like are counts.
        size = Size if name.startswith("num_") and not isinstance(default, (list, tuple)) else None
        fields[name] = (named.get(name) or size or hints.get(name) or _type_of(default), default)
    return create_model(member.__name__, __base__=Signature, __doc__=f"Signature of {member.__name__}.", **fields)


def _type_of(default: Any) -> Any:
    """Infer the type of an unannotated parameter from its default; an int accepts any number."""
    # Before int, of which bool is a subclass.
    if isinstance(default, bool):
        return bool
    if isinstance(default, (int, float)):
        return int | float
    if isinstance(default, str):
        return str | None
    return list[Any] if isinstance(default, (list, tuple)) else Any


def takes_more(member: Callable[..., Any]) -> bool:
    """Whether a class accepts arbitrary keys (``**kwargs``)."""
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in inspect.signature(member).parameters.values())
