"""MATLAB's bicubic ``imresize``, bit-exact on uint8.

The published low-resolution test images were made with MATLAB. On uint8 input MATLAB resizes one dimension after the
other (rows first) and *rounds to uint8 in between*, half away from zero; an implementation that rounds only once, at
the end, differs in more than a tenth of the values. Floating-point input is neither rounded nor clipped.

The weighted sums are numpy additions in ascending order of the taps, not a matrix product, so the result does not
depend on the BLAS library or on its number of threads.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KERNEL_SUPPORT = 4  # bicubic: two pixels on each side
_CACHE_BLOCK = 1 << 18  # bytes of output per block, to stay in a core's L2 cache


def imresize(image: NDArray[Any], scale: float) -> NDArray[Any]:
    """Resize by ``scale`` with the antialiased bicubic kernel of MATLAB's ``imresize(image, scale, 'bicubic')``.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, any channel order. uint8 is rounded after each pass, as in MATLAB;
            float32 and float64 (any range) are neither rounded nor clipped, as in
            ``basicsr.utils.matlab_functions.imresize``, but computed in float64.
        scale: Output size divided by input size; below 1 shrinks (``1 / 4`` makes the x4 LR image), above 1 enlarges.

    Returns:
        ``(ceil(H * scale), ceil(W * scale)[, C])`` of the input's dtype, in C order.

    Raises:
        ValueError: Unsupported dtype or number of dimensions, an empty image, or a non-positive or infinite scale.
    """
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"imresize expects uint8, float32 or float64, got {image.dtype}")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"imresize expects a non-empty (H, W) or (H, W, C) image, got shape {image.shape}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"imresize expects a positive, finite scale, got {scale}")
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else image.shape[2]
    rows = _resize_rows(image.reshape(height, width * channels), scale)
    # The second pass is the first one on the transposed image, so that it also adds whole rows.
    columns_first = rows.reshape(-1, width, channels).swapaxes(0, 1)
    resized = _resize_rows(columns_first.reshape(width, -1), scale).reshape(-1, len(rows), channels)
    return np.ascontiguousarray(resized.swapaxes(0, 1).reshape(len(rows), -1, *image.shape[2:]))


def downsample(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Make the LR image, ``(H // scale, W // scale[, C])``, of ``(H, W[, C])`` of a type that ``imresize`` takes.

    It is cropped to a multiple of ``scale``, a whole number from 1, and shrunk by ``imresize``.
    """
    return imresize(mod_crop(image, scale), 1 / scale)


def mod_crop(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Crop the bottom and the right of ``(H, W[, C])`` to a multiple of ``scale`` (a view)."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def _resize_rows(matrix: NDArray[Any], scale: float) -> NDArray[Any]:
    """Resize ``(rows, columns)`` to ``(ceil(rows * scale), columns)``, rounded if the input is uint8."""
    weights, indices = _contributions(len(matrix), scale)
    is_uint8 = matrix.dtype == np.uint8
    # Sums of uint8 times weight are exact in float32 if the weights are multiples of 2**-14, which leave 10 of its 24
    # bits (x2 and x4): the same bits with half the traffic.
    is_exact = is_uint8 and np.array_equal(weights * 2**14, np.rint(weights * 2**14))
    dtype = np.float32 if is_exact else np.float64
    source, weights = matrix.astype(dtype), weights.astype(dtype)
    result = np.empty((len(weights), matrix.shape[1]), matrix.dtype)
    step = max(1, _CACHE_BLOCK // (dtype().itemsize * matrix.shape[1]))
    for start in range(0, len(weights), step):
        block = slice(start, start + step)
        # Tap by tap, without a (rows, taps, columns) array.
        total = np.zeros((len(weights[block]), source.shape[1]), dtype)
        product = np.empty_like(total)
        for tap_weights, tap_indices in zip(weights[block].T, indices[block].T, strict=True):
            # "clip" lets numpy write into ``out`` directly; no index is out of range.
            np.take(source, tap_indices, axis=0, out=product, mode="clip")
            product *= tap_weights[:, None]
            total += product
        # MATLAB rounds half away from zero, numpy's rint to even; negative sums are clipped anyway.
        result[block] = np.clip(np.floor(total + dtype(0.5)), 0, 255) if is_uint8 else total
    return result


# The images of a data set share a few sides.
@lru_cache(maxsize=64)
def _contributions(length: int, scale: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return weights and source positions, both ``(ceil(length * scale), taps)``, for one dimension.

    Pixel centres sit at half-integers, the kernel is stretched by ``1 / scale`` when shrinking (antialiasing),
    weights are normalised to 1, and beyond the border the image is mirrored with its edge pixel repeated.
    """
    stretch = min(scale, 1.0)
    support = _KERNEL_SUPPORT / stretch
    # MATLAB's coordinates, which count from 1; hence the - 1 where they become indices.
    centres = np.arange(1, math.ceil(length * scale) + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centres - support / 2)
    # MATLAB takes two taps more than the kernel is wide, and drops those of weight 0 everywhere.
    positions = first[:, None] + np.arange(math.ceil(support) + 2)
    # Keys' cubic convolution kernel with a = -0.5 (Keys 1981, Eq. 15).
    x = np.abs(stretch * (centres[:, None] - positions))
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = stretch * np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(weights != 0, axis=0)
    # Mirrored with the edge pixel repeated: a period of twice the length.
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    indices = mirrored[np.mod(positions[:, used].astype(np.intp) - 1, 2 * length)]
    return weights[:, used], indices
