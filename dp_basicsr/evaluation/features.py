"""Fig. 3 of the paper: features of VGG19 and ResNet-50 for one image at the same depth and shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.archs.perceptual_arch import FrozenFeatures, VGGFeatures, load_features
from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import read_file
from dp_basicsr.evaluation.figures import picture_format, save_figure
from dp_basicsr.metrics.scores import in_colour

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Both follow seven convolutions and two downsamplings, end with a ReLU and have 256 channels (Fig. 3).
VGG_LAYER = "relu3_3"
RESNET_LAYER = "conv2_2"  # the second bottleneck of conv2, torchvision's layer1[1]
CHANNELS = 256


def feature_maps(image: NDArray[np.uint8], weights: str) -> dict[str, Tensor]:
    """Return the features of an image, ``(H, W, 3)`` BGR uint8, in both networks (``imagenet`` or ``random``) by name.

    Each is ``(256, about H / 4, about W / 4)``.
    """
    vgg = VGGFeatures([VGG_LAYER], "vgg19", weights)
    # A node of our own, because the loss's ResNet returns only whole stages.
    resnet = FrozenFeatures(load_features("resnet50", weights, {"layer1.1": RESNET_LAYER}), [RESNET_LAYER])
    rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float().div(255)[None]
    with torch.inference_mode():
        return {f"VGG19 {VGG_LAYER}": vgg(rgb)[VGG_LAYER][0], f"ResNet-50 {RESNET_LAYER}": resnet(rgb)[RESNET_LAYER][0]}


def plot_features(path: Path, out: Path, channels: Sequence[int], weights: str = "imagenet") -> None:
    """Draw an image and the chosen channels of both networks; random weights are marked in the picture.

    ``channels`` count from 1, as in the paper; ``weights`` are ``imagenet`` or ``random``.
    """
    if wrong := [channel for channel in channels if not 1 <= channel <= CHANNELS]:
        raise UserError(f"channels: expected numbers from 1 to {CHANNELS}, got {wrong[0]}")
    image = in_colour(read_file(path))
    picture_format(out)
    maps = feature_maps(image, weights)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * (1 + len(channels)), 6.4), layout="constrained")
    axes = figure.subplots(len(maps), 1 + len(channels), squeeze=False)
    for row, (name, features) in zip(axes, maps.items(), strict=True):
        row[0].imshow(image[..., ::-1])
        row[0].set_title(name)
        for axis, channel in zip(row[1:], channels, strict=True):
            # The paper counts channels from 1.
            axis.imshow(features[channel - 1].numpy(), cmap="gray")
            axis.set_title(f"channel {channel}")
        for axis in row:
            axis.axis("off")
    if weights == "random":
        figure.suptitle("RANDOM WEIGHTS: not the features of Fig. 3", color="red")
    save_figure(figure, out, dpi=130)
