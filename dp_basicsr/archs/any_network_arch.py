"""Features of any classification network of torchvision or timm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from dp_basicsr.archs.perceptual_arch import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESNET_TYPES,
    VGG_TYPES,
    FrozenFeatures,
    ResNetFeatures,
    VGGFeatures,
    check_names,
    extract,
)
from dp_basicsr.archs.pretrained import (
    find_weights,
    load_backbone,
    or_random,
    random_network,
    random_weights,
    without_weights,
)
from dp_basicsr.errors import UserError, import_optional

import torch
from torchvision import models
from torchvision.models.feature_extraction import get_graph_node_names

TIMM = "timm/"  # prefix of timm's model names

TORCHVISION_TYPES = tuple(models.list_models(module=models))


def build_features(
    network: str,
    layers: Iterable[str],
    weights: str = "imagenet",
    *,
    use_input_norm: bool = True,
    range_norm: bool = False,
    batch_stats: bool = False,
) -> FrozenFeatures:
    """Build the frozen features of a network by name.

    Args:
        network: A VGG (layers: BasicSR's names), a ResNet (``layer1`` ... ``layer4``), any other classification network
            of torchvision (the node names of ``torchvision.models.feature_extraction``, for example ``features.3`` of
            ``convnext_tiny``), or ``timm/<name>`` (the names of its ``feature_info``, for example ``stages.1``).
        layers: Names of the output layers.
        weights: ``imagenet`` (timm: the model's own pretrained weights), a path, or ``random`` (seeded).
        use_input_norm: Normalise RGB in [0, 1] by the statistics the network was trained with: ImageNet's, or timm's
            own.
        range_norm, batch_stats: See ``FrozenFeatures``.

    Raises:
        UserError: The network or a layer is unknown, or the weights are not available or do not match.
    """
    layers, weights = tuple(layers), or_random(network, weights)
    if network in VGG_TYPES and not batch_stats:
        return VGGFeatures(layers, network, weights, use_input_norm, range_norm)
    if network in RESNET_TYPES:
        return ResNetFeatures(layers, network, weights, use_input_norm, range_norm, batch_stats)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if network.startswith(TIMM):
        name = network.removeprefix(TIMM)
        with torch.device("meta"):
            whole = _create(name, pretrained=False)
        names = [info["module"] for info in whole.feature_info]
        check_names("layer", layers, names)
        # timm returns the features in the network's order, whatever the indices' order.
        layers = tuple(sorted(layers, key=names.index))
        net = _with_weights(name, weights, features_only=True, out_indices=[names.index(layer) for layer in layers])
        mean, std = whole.pretrained_cfg.get("mean", mean), whole.pretrained_cfg.get("std", std)
    elif network in TORCHVISION_TYPES:
        nodes = get_graph_node_names(without_weights(network).eval())[1]
        # A module name selects its last node.
        modules = dict.fromkeys(".".join(node.split(".")[:depth]) for depth in (2, 1, 3, 4, 5) for node in nodes)
        check_names("layer", layers, modules)
        backbone = random_network(network) if weights == "random" else load_backbone(network, weights)
        net = extract(backbone, {layer: layer for layer in layers})
    else:
        raise UserError(
            f"network: expected one of {', '.join(VGG_TYPES + RESNET_TYPES)}, another classification network of "
            f"torchvision, or timm/<name>; got {network!r}"
        )
    return FrozenFeatures(net, layers, use_input_norm, range_norm, batch_stats, mean, std)


def _with_weights(network: str, weights: str, **options: Any) -> Any:
    """Create a timm model with its own weights, the weights of a file, or random weights."""
    if weights == "random":
        with random_weights(f"{TIMM}{network}"):
            return _create(network, pretrained=False, **options)
    if weights != "imagenet":
        # timm then reads this file where it would download its own weights.
        options["pretrained_cfg_overlay"] = {"file": str(find_weights(f"{TIMM}{network}", weights))}
    try:
        return _create(network, pretrained=True, **options)
    except Exception as error:
        # Hubs, and files of other networks, raise anything.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the weights of {TIMM}{network} ({weights}) are not available or do not match: {reason}; "
            "`weights` takes a file that another machine has downloaded"
        ) from error


def _create(network: str, **options: Any) -> Any:
    timm = import_optional("timm")
    # Behind the dot stands the tag of the weights.
    if not timm.is_model(network.partition(".")[0]):
        close = timm.list_models(f"*{network[:6]}*")[:5]
        raise UserError(f"network: {TIMM}{network}: expected a model of timm ({', '.join(close)} ...), got {network!r}")
    # Only transformers have these arguments, and fewer the second.
    for more in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}):
        with contextlib.suppress(TypeError):
            return timm.create_model(network, **more, **options)
    return timm.create_model(network, **options)
