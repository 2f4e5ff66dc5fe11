"""Metrics of other libraries by name: ``piq/DISTS``, ``torchmetrics/VisualInformationFidelity``, ``pyiqa/musiq``."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dp_basicsr.errors import UserError, first_line, import_optional, shorten
from dp_basicsr.metrics.tensors import ALONE, device, to_tensor

import numpy as np
import torch
from basicsr.utils import get_root_logger
from numpy.typing import NDArray

# Library -> the module whose classes are its metrics.
LIBRARIES = {"piq": "piq", "torchmetrics": "torchmetrics.image", "pyiqa": "pyiqa"}

# Parameters of the classes that a pair of images in [0, 1] decides; torchmetrics would guess the range from the data.
RANGE: dict[str, Any] = {"data_range": 1.0, "normalize": True}


def library_metric(kind: str) -> Callable[..., float]:
    """Return a library's metric, if it exists, as a function like BasicSR's, of images, border and class's keywords."""

    def calculate(
        img: NDArray[np.uint8],
        img2: NDArray[np.uint8] | None = None,
        crop_border: int = 0,
        input_order: str = "HWC",
        **keywords: Any,  # BasicSR passes every key of the option file, e.g. `better`
    ) -> float:
        with ALONE:
            if why_not(kind, **keywords):
                return math.nan
            tensors = [to_tensor(image, crop_border, input_order) / 255 for image in (img, img2) if image is not None]
            metric = build(kind, _own_keywords(kind, keywords), device())
            with torch.inference_mode():
                value = float(metric(*tensors))
            # torchmetrics' sum over all images that they have seen.
            if hasattr(metric, "reset"):
                metric.reset()
            return value

    # BasicSR and the checks of the options read a metric's keys from its signature: images, border and the class's own.
    first, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, first) for name in ("img", "img2")[: 1 + takes_original(kind)]]
    settings: dict[str, Any] = {"crop_border": 0, "input_order": "HWC"}
    for name, parameter in inspect.signature(library_class(kind)).parameters.items():
        if parameter.kind is first and name not in (*RANGE, "reduction"):
            settings[name] = parameter.default
    parameters += [inspect.Parameter(name, keyword, default=default) for name, default in settings.items()]
    calculate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    calculate.__name__ = kind
    return calculate


@lru_cache
def library_class(kind: str) -> Callable[..., Any]:
    """Return what builds a library's metric; a UserError names what is missing, or the metrics that exist."""
    library, _, name = kind.partition("/")
    if library not in LIBRARIES:
        raise UserError(f"{kind}: expected a metric of {', '.join(LIBRARIES)}")
    try:
        module = import_optional(LIBRARIES[library])
    except UserError as error:
        licence = "pyiqa cannot be imported: pip install pyiqa (non-commercial licence)"
        raise UserError(f"{kind}: {licence if library == 'pyiqa' else error}") from error
    if library == "pyiqa":
        names = module.list_models()
        if name in names:
            return lambda: module.create_metric(name)
    else:
        names = [name for name, member in vars(module).items() if inspect.isclass(member) and _images(member)]
        if name in names:
            return getattr(module, name)  # type: ignore[no-any-return]
    raise UserError(f"{kind}: expected a metric of {library} that rates single images: {shorten(names, 30)}")


def better_of(kind: str) -> str:
    """Return whether ``higher`` or ``lower`` values of a library's metric are better."""
    library, _, name = kind.partition("/")
    member: Any = library_class(kind)
    if library == "pyiqa":
        return "lower" if build(kind, "{}", device()).lower_better else "higher"
    # piq's classes are losses, but for this one.
    if library == "piq":
        return "higher" if name == "CLIPIQA" else "lower"
    return "higher" if member.higher_is_better else "lower"


def takes_original(kind: str) -> bool:
    """Return whether a library's metric compares with the original."""
    member: Any = library_class(kind)
    if kind.startswith("pyiqa/"):
        return bool(build(kind, "{}", device()).metric_mode == "FR")
    return _images(member) == 2


def why_not(kind: str, **keywords: Any) -> str | None:
    """Return why a library's metric is not available here (logged once), or None if it is; as for LPIPS's backbones.

    One that does not take its keywords or a pair of images is a UserError.
    """
    return _why_not(kind, _own_keywords(kind, keywords))


@lru_cache
def _why_not(kind: str, keywords: str) -> str | None:
    try:
        metric = build(kind, keywords, device())
    except (UserError, ImportError, OSError, RuntimeError) as error:  # not installed, or its weights are not there
        get_root_logger().warning(f"{kind} is n/a: {first_line(error)}")
        return first_line(error)
    # Wrong keywords are a mistake in the options; what is only missing lets a run continue.
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind}: {first_line(error)}") from error
    # A class may take a pair and still need more, such as low-resolution bands: only trying tells.
    images = [torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    try:
        with torch.inference_mode():
            metric(*(image.to(device()) for image in images[: 1 + takes_original(kind)]))
    except Exception as error:  # each library refuses in its own way
        raise UserError(f"{kind} cannot rate an image: {type(error).__name__}: {first_line(error)}") from error
    return None


@lru_cache
def build(kind: str, keywords: str, place: str) -> Any:
    """Build a metric with keywords (as JSON) on a device, once; the global random state is unchanged."""
    member = library_class(kind)
    parameters = inspect.signature(member).parameters
    # A parameter of the same name may mean something else: `normalize` of MS-SSIM is a kind of function.
    fixed = {
        name: value
        for name, value in RANGE.items()
        if name in parameters and not isinstance(parameters[name].default, str)
    }
    # Networks are initialised at random before their weights are loaded, in the middle of a training.
    with torch.random.fork_rng(devices=[]):
        return member(**fixed, **json.loads(keywords)).to(place).eval()


def _own_keywords(kind: str, keywords: dict[str, Any]) -> str:
    """Return those of an entry's keys that are the class's own, as JSON, which a cache can hold."""
    try:
        known = inspect.signature(library_class(kind)).parameters
    except UserError:
        return "{}"
    return json.dumps({name: value for name, value in keywords.items() if name in known})


def _images(member: Any) -> int:
    """Return how many images a class of piq or torchmetrics compares: 0 if it is no such metric."""
    # By the names of its arguments, because FID and its like, which compare sets, take two tensors too.
    call = getattr(member, "update", getattr(member, "forward", None))  # torchmetrics', piq's
    names = tuple(inspect.signature(call).parameters)[1:] if call else ()
    pairs = (("preds", "target"), ("img1", "img2"), ("x", "y"), ("prediction", "target"))
    return 2 if names in pairs else 1 if names in (("img",), ("x",), ("x_input",)) else 0
