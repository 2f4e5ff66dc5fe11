"""Compare what the two images of a pair show: turned, shifted, of another tone or order of colours, or aliased."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any, TypeVar

from dp_basicsr.utils.arguments import advise

import cv2
import numpy as np
from numpy.typing import NDArray

# Mean difference of colours in levels of 255 from which it is told. Noise that is clipped at black shifts it by up to
# 12 at sigma 30, the strongest of Real-ESRGAN's degradations; half brightness or another gamma by about 50.
TONE = 16
Way = TypeVar("Way")


def compare(
    gt: NDArray[np.uint8], lq: NDArray[np.uint8], scale: int
) -> tuple[list[tuple[str, str]], NDArray[np.float32] | None]:
    """Return kinds and texts of what is wrong with an LQ of the right size, and thumbnails of both if they fit."""
    # Both of the LQ's size, because INTER_AREA makes no means of fewer than 16 pixels.
    height, width = lq.shape[:2]
    cut = gt[: height * scale, : width * scale]
    small: list[NDArray[Any]] = [cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), lq]
    large, *gray = map(_gray, (cut, *small))
    thumbnails = thumbnails_of(*gray)
    if way := _way_up(*thumbnails):
        return [("orientation", f"its LQ is {way}")], None
    is_swapped = gt.ndim == lq.ndim == 3 and _has_other_channels(*small)
    if text := "its LQ has red, green and blue in another order" if is_swapped else _shift(*gray):
        return [("content", text)], None
    faults = []
    if _is_aliased(large, gray[1]):
        text = "its LQ has no antialiasing, as by cv2.resize (others of the set are not listed): "
        faults.append(("aliased", f"{text}`{advise('data lr')}` makes it"))
    # The range that video has. Noise that is clipped moves black and white too, but leaves more than a level.
    narrow = [16 + image * np.float32(219 / 255) for image in small]
    is_narrow = min(_tone(narrow[0], small[1]), _tone(small[0], narrow[1])) < 1
    if (levels := _tone(*small)) > TONE or (levels > 4 and is_narrow):
        what = "another range, of video (16 to 235) or not" if is_narrow else "other brightness or colours"
        text = f"its LQ has {what}, by {levels:.0f} of 255 levels"
        faults.append(("tone", f"{text} (others of the set are not listed)"))
    return faults, thumbnails


def thumbnails_of(*images: NDArray[Any]) -> NDArray[np.float32]:
    """Return 16 x 16 gray values: noise and compression of a degraded LQ average out, what it shows does not."""
    small = [cv2.resize(_gray(image).astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(small)


def other_pictures(pairs: list[tuple[str, NDArray[np.float32]]]) -> Iterator[tuple[str, str]]:
    """Yield the names whose second thumbnail shows something else, with the name whose first it shows or ""."""
    # Flat images have no pattern to be recognised by, so their rows stay 0.
    every_gt = np.array([(gt.std() >= 4) * (gt - gt.mean()).ravel() / (256 * max(gt.std(), 4)) for _, (gt, _) in pairs])
    for name, (gt, lq) in pairs:
        if (like := likeness(gt, lq)) > 0.9:
            continue
        # At least 0.5, so that the rounding noise of a flat LQ does not count as a pattern.
        others = every_gt @ (lq - lq.mean()).ravel() / max(float(lq.std()), 0.5)
        best = int(np.argmax(others))
        if others[best] > 0.7 and 1 - others[best] < (1 - like) / 2:
            yield name, pairs[best][0]
        elif like < 0.5:
            yield name, ""


def likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the correlation of two thumbnails, which brightness and contrast do not change; 1 if both are flat."""
    deviations = float(first.std()), float(second.std())
    if max(deviations) < 4:
        # Nothing to compare but the colour.
        return float(abs(first.mean() - second.mean()) < 64)
    if min(deviations) < 0.5:
        return 0.0
    return float(((first - first.mean()) * (second - second.mean())).mean()) / (deviations[0] * deviations[1])


def _gray(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 2 else cv2.transform(image, np.full((1, 3), 1 / 3))


def _way_up(gt: NDArray[np.float32], lq: NDArray[np.float32]) -> str:
    """Return how the LQ is turned or mirrored; empty if it is upright, or fits no way clearly better."""
    fits = {}
    for mirrored in (False, True):
        for times in range(4):
            # The LQ as it was before: turned back, then mirrored.
            image = np.rot90(lq, times)
            fits[mirrored, times] = likeness(gt, image[:, ::-1] if mirrored else image)
    mirrored, times = _best(fits)
    return " and ".join(["mirrored"] * mirrored + [f"rotated clockwise by {90 * times} degrees"] * bool(times))


def _best(fits: dict[Way, float]) -> Way:
    """Return the way that fits best if it is clearly better than the first, otherwise the first."""
    first, best = next(iter(fits)), max(fits, key=lambda way: fits[way])
    # Nearly symmetric pictures fit several ways, so the error must be less than half.
    is_better = fits[best] > max(0.7, fits[first] + 0.01) and 1 - fits[best] < (1 - fits[first]) / 2
    return best if is_better else first


def _shift(gt: NDArray[Any], lq: NDArray[Any]) -> str:
    """Return how far the LQ is shifted, or how much enlarged; "" for a pixel or 4 %, as degradations do it."""
    height, width = lq.shape
    gt = gt.astype(np.float32)
    margin = min(height, width) // 4
    # The middle of a large one, unless it is flat.
    for largest in (512, max(height, width)):
        top, left = (max(margin, (side - largest) // 2) for side in (height, width))
        # From the LQ: searched in it, a part of a smooth GT fits its noise best elsewhere.
        inside = np.ascontiguousarray(lq[top : height - top, left : width - left], np.float32)
        if inside.std() >= 4:
            break
    if margin < 2 or min(float(inside.std()), float(gt.std())) < 4:
        return ""
    around = gt[top - margin : height - top + margin, left - margin : width - left + margin]
    fits = cv2.matchTemplate(around, inside, cv2.TM_CCOEFF_NORMED)
    down, right = (margin - int(place) for place in np.unravel_index(fits.argmax(), fits.shape))
    best = _best({(0, 0): float(fits[margin, margin]), (down, right): float(fits.max())})
    # Part of another small picture fits up to 0.9 somewhere.
    if max(map(abs, best)) > 1 and fits.max() > 0.9:
        return f"its LQ shows the same, {right} pixels further right and {down} down"
    is_plain = fits[margin - 1 : margin + 2, margin - 1 : margin + 2].max() > 0.98
    if is_plain or margin < 12:
        return ""
    # As a lens that sees less shows it: the middle. Larger images take longer and tell no more.
    small = min(1, 96 / min(lq.shape))
    gt, lq = (cv2.resize(image, None, fx=small, fy=small, interpolation=cv2.INTER_AREA) for image in (gt, lq))
    height, width = lq.shape
    middle = np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4]
    inside, sizes = np.asarray(lq[middle], np.float32), dict[float, float]()
    if inside.std() < 4:
        return ""
    for size in (1.0, *np.arange(0.75, 1.34, 0.01)):
        lens = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, size)
        sizes[size] = likeness(np.asarray(cv2.warpAffine(gt, lens, (width, height)), np.float32)[middle], inside)
    size = _best(sizes)
    is_enlarged = abs(size - 1) > 0.04 and sizes[size] > 0.97
    return f"its LQ shows the same, {size:.2f} times as large" if is_enlarged else ""


def _is_aliased(gt: NDArray[Any], lq: NDArray[Any]) -> bool:
    """Return whether the LQ has some pixels of the GT without those between, which gives false patterns."""
    height, width = lq.shape
    ways = cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_NEAREST
    mean, *others = (
        cv2.absdiff(cv2.resize(gt, (width, height), interpolation=way), lq).mean() for way in (cv2.INTER_AREA, *ways)
    )
    # On photographs at x2 to x8: 1.0 and 0.2 of 255 levels, or with antialiasing at least 0.6 from each of these.
    return mean > 1 and min(others) < 0.4


def _tone(*pair: NDArray[Any]) -> float:
    """Return how far the colours of GT and LQ are apart, as a mean over 4 x 4 areas; one may be gray."""
    gt, lq = (cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA).reshape(4, 4, -1) for image in pair)
    return float(np.abs(gt.astype(np.float32) - lq).mean())


def _has_other_channels(gt: NDArray[np.uint8], lq: NDArray[np.uint8]) -> bool:
    """Return whether the colours of the LQ, without their mean and the gray, fit those of the GT in another order."""
    pair = [cv2.resize(image.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA) for image in (gt, lq)]
    gt, lq = (image - image.mean(axis=(0, 1)) for image in pair)
    lq = lq / np.maximum(lq.std(axis=(0, 1)), 1)
    fits = {}
    for order in permutations(range(3)):
        # Each channel as strong as the GT's: under a colour cast, the gray would not cancel out.
        both = gt, lq[..., order] * gt.std(axis=(0, 1))
        fits[order] = likeness(*(image - image.mean(axis=2, keepdims=True) for image in both))
    return _best(fits) != (0, 1, 2)
