"""Upscale an image: its colours and its transparency."""

from __future__ import annotations

from dataclasses import replace

from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.images.metadata import Picture
from dp_basicsr.utils.tiles import OnTile, Pixels

import cv2
import numpy as np


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
        upscaler: Upscales the colours; with ``alpha_mode`` ``model`` and ``data`` also the alpha, as a gray image.
        outscale: Size of the result over that of the input; None: the network's scale.
        alpha_mode: How to upscale the alpha (``data`` keeps the colours below it), or to drop it. A uniform alpha stays
            uniform. Pixels that a TIFF marks as having no data are handled as transparent ones, and keep their mark.
        on_tile: Called after each tile.
    """
    size = size_of_result(picture, upscaler, outscale)
    nodata = picture.metadata.nodata
    if picture.alpha is None and nodata is not None and (hidden := (picture.colour == nodata).all(axis=2)).any():
        masked = replace(picture, alpha=np.where(hidden, 0, 255).astype(np.uint8))
        result = upscale_picture(masked, upscaler, outscale=outscale, alpha_mode="bicubic", on_tile=on_tile)
        # A value that the network gives by chance marks nothing.
        colour = np.where(result.colour == nodata, result.colour ^ 1, result.colour)
        colour[result.alpha < 128] = nodata  # type: ignore[operator]
        return replace(result, colour=colour, alpha=None)
    alpha = None if alpha_mode == "drop" else picture.alpha
    is_uniform = alpha is not None and bool((alpha == alpha[0, 0]).all())
    passes = 2 if alpha is not None and alpha_mode != "bicubic" and not is_uniform else 1

    def upscale(pixels: Pixels, number: int) -> Pixels:
        # The progress of one pass as that of all passes.
        return upscaler(pixels, on_tile and (lambda done, total: on_tile(number * total + done, passes * total)))

    colour = picture.colour if alpha is None or alpha_mode == "data" else spread_colours(picture.colour, alpha)
    colour = upscale(colour, 0)
    if picture.gray or (picture.colour == picture.colour[:, :, :1]).all():
        # A network may give gray a slight colour, also gray in a colour file.
        colour = np.repeat(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)  # type: ignore[assignment]
    if alpha is not None:
        height, width = (side * upscaler.scale for side in alpha.shape)
        if is_uniform:
            alpha = np.full((height, width), alpha[0, 0], alpha.dtype)
        elif alpha_mode == "bicubic":
            alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
        else:
            given, window, enlarge = alpha, np.ones((5, 5), np.uint8), np.ones((upscaler.scale,) * 2, alpha.dtype)
            alpha = cv2.cvtColor(upscale(np.repeat(alpha[:, :, None], 3, axis=2), 1), cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
            # Away from its edges alpha stays as it is, whatever the network's ripples: opaque is 255.
            flat = np.kron(cv2.erode(given, window) == cv2.dilate(given, window), enlarge)
            alpha = np.where(flat, np.kron(given, enlarge), alpha)
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
