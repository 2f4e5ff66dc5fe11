"""Upscale an image: its colours and its transparency."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.images.picture import Picture
from dp_basicsr.utils.tiles import OnTile, Pixels

import cv2
import numpy as np

if TYPE_CHECKING:
    from dp_basicsr.deploy.upscaler import Upscaler


def upscale_picture(
    picture: Picture,
    upscaler: Upscaler,
    *,
    outscale: float | None = None,
    alpha_mode: AlphaMode = "model",
    on_tile: OnTile | None = None,
) -> Picture:
    """Upscale colours and alpha.

    Args:
        picture: The input.
        upscaler: Upscales the colours; with ``alpha_mode`` ``model`` also the alpha, as a gray image.
        outscale: Size of the result over that of the input; None: the network's scale.
        alpha_mode: How to upscale the alpha, or to drop it. A uniform alpha stays uniform.
        on_tile: Called after each tile.
    """
    size = size_of_result(picture, upscaler, outscale)
    alpha = None if alpha_mode == "drop" else picture.alpha
    two_passes = alpha is not None and alpha_mode == "model" and not _is_constant(alpha)
    passes = 2 if two_passes else 1

    colour = picture.colour if alpha is None else spread_colours(picture.colour, alpha)
    colour = upscaler(colour, _part_of(on_tile, 0, passes))
    if picture.gray:
        # A network may give gray a slight colour.
        colour = np.repeat(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)  # type: ignore[assignment]
    if alpha is not None:
        alpha = _upscale_alpha(alpha, upscaler, alpha_mode, _part_of(on_tile, 1, passes))
        alpha = resize(alpha, *size)
    return replace(picture, colour=resize(colour, *size), alpha=alpha)


def size_of_result(picture: Picture, upscaler: Upscaler, outscale: float | None = None) -> tuple[int, int]:
    """Return height and width of the result of ``upscale_picture``."""
    factor = upscaler.scale if outscale is None else outscale
    height, width = (max(round(side * factor), 1) for side in picture.colour.shape[:2])
    return height, width


def spread_colours(colour: Pixels, alpha: Pixels) -> Pixels:
    """Give fully transparent pixels the colour of the nearest visible one.

    Their colours in files are arbitrary (often black), and a network would spread them over the edge as a dark fringe.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    # OpenCV labels each visible pixel, and each hidden one like the visible one next to it.
    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.zeros((int(labels.max()) + 1, 3), colour.dtype)
    nearest[labels[~hidden]] = colour[~hidden]
    return np.where(hidden[:, :, None], nearest[labels], colour)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize (H, W[, 3]) to another size: area averaging to shrink, Lanczos to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)  # type: ignore[return-value]


def _upscale_alpha(alpha: Pixels, upscaler: Upscaler, mode: AlphaMode, on_tile: OnTile | None) -> Pixels:
    height, width = (side * upscaler.scale for side in alpha.shape)
    if _is_constant(alpha):
        return np.full((height, width), alpha[0, 0], alpha.dtype)
    if mode == "bicubic":
        return cv2.resize(alpha, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]
    enlarged = upscaler(np.repeat(alpha[:, :, None], 3, axis=2), on_tile)
    return cv2.cvtColor(enlarged, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def _is_constant(alpha: Pixels) -> bool:
    return bool((alpha == alpha[0, 0]).all())


def _part_of(on_tile: OnTile | None, number: int, passes: int) -> OnTile | None:
    """Convert the progress of one pass into that of all passes."""
    if on_tile is None:
        return None
    return lambda done, total: on_tile(number * total + done, passes * total)
