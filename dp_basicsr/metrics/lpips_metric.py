"""LPIPS (Zhang et al., CVPR 2018) as a BasicSR metric.

The ``lpips`` package contains its linear weights but lets torchvision download the backbones. Here they are found
like the networks of the loss, see ``dp_basicsr.archs.pretrained.find_weights``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dp_basicsr.archs.pretrained import read_found, read_state_dict
from dp_basicsr.errors import UserError
from dp_basicsr.metrics.tensors import ALONE, device, pair_of
from dp_basicsr.options.metrics import METRICS
from dp_basicsr.registration import register

import lpips
import numpy as np
import torch
from basicsr.utils import get_root_logger
from numpy.typing import NDArray
from torch import Tensor

# lpips's backbone name -> torchvision's.
BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}


@register("metric")
def calculate_lpips(
    img: NDArray[np.uint8],
    img2: NDArray[np.uint8],
    crop_border: int,
    net: Literal["alex", "vgg"] = "alex",
    weights: str = "imagenet",
    input_order: str = "HWC",
    **_: Any,  # BasicSR passes every key of the option file, e.g. `better`
) -> float:
    """Compute LPIPS version 0.1 of two images: 0 for identical ones, lower is better.

    Args:
        img: ``(H, W, 3)`` BGR or ``(H, W)`` gray, uint8, [0, 255].
        img2: Same shape as ``img``.
        crop_border: Pixels cropped from every border, as for PSNR and SSIM.
        net: Backbone, ``alex`` or ``vgg``. The paper does not say which one it uses.
        weights: Weights of the backbone: ``imagenet``, or the path of a torchvision state_dict.
        input_order: ``HWC`` or ``CHW``.

    Returns:
        The distance; NaN if the backbone is not available (logged once), so that a run can continue.

    Raises:
        UserError: The shapes differ, an image is too small, or the backbone is unknown.
    """
    with ALONE:
        if why_not(net, weights):
            return math.nan
        network = lpips_network(net, weights, device())
        pair = pair_of("LPIPS", METRICS["lpips_alex"].side, (img, img2), crop_border, input_order)
        with torch.inference_mode():
            return float(network(*(image / 127.5 - 1 for image in pair)))


def why_not(net: str = "alex", weights: str = "imagenet", **_: Any) -> str | None:
    """Return why LPIPS with a backbone is not available (logged once), or None if it is; raise on an unknown one."""
    if net not in BACKBONES:
        raise UserError(f"LPIPS: expected net to be one of {', '.join(BACKBONES)}, got {net!r}")
    network = lpips_network(net, weights, device())
    return network if isinstance(network, str) else None


@lru_cache
def lpips_network(net: str, weights: str, place: str) -> Any:
    """Load LPIPS, frozen and in eval mode, once per backbone and device; return the reason if that fails (logged)."""
    try:
        path, state = read_found(BACKBONES[net], weights)
        return build_network(net, state, str(path)).to(place)
    except UserError as error:
        get_root_logger().warning(f"LPIPS ({net}) is n/a: {error}")
        return str(error)


def build_network(net: str, backbone: Mapping[str, Tensor], source: str) -> lpips.LPIPS:
    """Build LPIPS of its package's linear weights and a torchvision state_dict, which came from ``source``."""
    # On the meta device: ``lpips.LPIPS`` would first initialise 60 to 140 million weights at random and change the
    # global random state of the training that it measures.
    with torch.device("meta"), warnings.catch_warnings():
        # It uses a deprecated torchvision API.
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    # Its constants, which have no values on the meta device.
    model.scaling_layer = lpips.ScalingLayer()
    linear = read_state_dict(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
    # Not strict, because the model has these modules twice, as lin0 and lins.0.
    model.load_state_dict(linear, strict=False, assign=True)
    # slice2.3.weight is torchvision's features.3.weight.
    keys = {name: f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
    for key in keys.values():
        if key not in backbone:
            raise UserError(f"{source} does not contain the weights of {BACKBONES[net]}: {key} is missing")
    try:
        # Assigned, because weights on the meta device have no memory to copy into.
        model.net.load_state_dict({name: backbone[key] for name, key in keys.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source} does not match {BACKBONES[net]}: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()
