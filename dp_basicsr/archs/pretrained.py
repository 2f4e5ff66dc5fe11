"""Find and load torchvision's ImageNet weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

from dp_basicsr.checkpoint.manifest import sha256_of
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.distributed.collectives import process_count
from dp_basicsr.errors import UserError
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.safe_load import load

import torch
from torch import Tensor, distributed, nn
from torchvision import models

# BasicSR's folder for pretrained networks, relative to the current folder.
PRETRAINED_DIR = Path("experiments/pretrained_models")

# The weights that the paper's code loads with pretrained=True (torch 1.7).
WEIGHTS_ENTRY = "IMAGENET1K_V1"

# Classifiers of torchvision's networks, not needed for features.
HEADS = frozenset({"fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2"})

# Seed of `weights: random`, so that runs with random networks are comparable.
RANDOM_SEED = 0

OTHER = "has other weights than torchvision's file of this name: delete it, to download it again"

_absent: list[str] | None = None  # in a trial, what is missing


def weights_url(network: str) -> str:
    """Return the public URL of a torchvision network's IMAGENET1K_V1 weights; its file name has the checksum."""
    # Two networks have later ones alone.
    if (weights := models.get_model_weights(network).__members__.get(WEIGHTS_ENTRY)) is None:
        raise UserError(f"{network} has no {WEIGHTS_ENTRY} weights in torchvision: give a file, or another network")
    return str(weights.url)


def download_weights(network: str, folder: Path, progress: bool = True) -> Path:
    """Download a network's weights into ``folder``, and check them against the hash in the file name.

    The file is there when it is complete and correct; otherwise a UserError names its URL and the folder.
    """
    url = weights_url(network)
    target = folder / url.rsplit("/", 1)[1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checksum = target.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(target), hash_prefix=checksum, progress=progress)
    except (URLError, OSError, RuntimeError) as error:
        # torch hub's RuntimeError is about the hash.
        reason = "what came is another file, as of a proxy" if isinstance(error, RuntimeError) else error
        raise UserError(
            f"the ImageNet weights of {network} were not found and could not be downloaded ({reason}).  "
            f"Download {url} on another machine and put {target.name} into {PRETRAINED_DIR}/ "
            f"(or run `{advise('data networks', network)}` with a network connection)"
        ) from error
    return target


def local_weights(network: str, source: str) -> Path | None:
    """Find the weights of a network (torchvision's name) on this machine; None if its ImageNet weights are not there.

    ``source`` is ``imagenet``, searched in ``PRETRAINED_DIR``, then in torch hub's cache, or the path of a torchvision
    state_dict, which must exist (UserError).
    """
    if source != "imagenet":
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"weights of {network}: no such file {source!r}; expected one, imagenet or (losses) random")
        return path
    name = weights_url(network).rsplit("/", 1)[1]
    files = (folder / name for folder in (PRETRAINED_DIR, Path(torch.hub.get_dir(), "checkpoints")))
    return next((file for file in files if file.is_file()), None)


def is_original(file: Path) -> bool:
    """Return whether a file of torchvision's has the checksum with which its name ends."""
    return sha256_of(file).startswith(file.stem.rsplit("-", 1)[1])


def find_weights(network: str, source: str) -> Path:
    """Return the file of ``local_weights``, or download it into torch hub's cache; a UserError if neither can be."""
    is_first = process_count() == 1 or distributed.get_rank() == 0
    if file := local_weights(network, source):
        # Other weights on purpose still work. Half a gigabyte is read once for all processes.
        if source == "imagenet" and is_first and not is_original(file):
            logging.getLogger("basicsr").warning(f"{file} {OTHER}, or name it in the options: weights: FILE")
        return file
    return download_weights(network, Path(torch.hub.get_dir(), "checkpoints"), progress=is_first)


def use_our_weights() -> None:
    """Let networks built with torchvision's ``pretrained=True`` find and download their weights as ours do.

    BasicSR's PerceptualLoss builds VGG so, and ends in a traceback where there is no network connection. Can be removed
    when it takes a file, or a URL's error.
    """
    theirs = models.WeightsEnum.get_state_dict
    networks = {models.get_model_weights(name): name for name in models.list_models(module=models)}

    def get_state_dict(weights: models.WeightsEnum, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        network = networks.get(type(weights))
        if network is None or weights.name != WEIGHTS_ENTRY:
            return theirs(weights, *args, **kwargs)
        return state_of(network, "imagenet")

    models.WeightsEnum.get_state_dict = get_state_dict  # type: ignore[method-assign]


@contextlib.contextmanager
def without_downloads() -> Iterator[list[str]]:
    """Let networks have random weights where theirs are missing, for a trial; yield what is missing.

    Metrics of other libraries, which download theirs by torch.hub, are not available meanwhile.
    """
    global _absent
    _absent, download = (missing := []), torch.hub.download_url_to_file

    def refuse(url: str, *_: object, **__: object) -> None:
        missing.append(f"weights {url.rsplit('/', 1)[1]}")
        raise OSError(f"a trial does not download {url}")

    torch.hub.download_url_to_file = refuse
    try:
        yield _absent
    finally:
        _absent, torch.hub.download_url_to_file = None, download


def or_random(network: str, source: str) -> str:
    """Return ``source`` of a network's weights, or ``random`` if a trial would have to download them."""
    # timm has a cache of its own, in which a download is not repeated.
    if _absent is None or source != "imagenet" or ("/" not in network and local_weights(network, source)):
        return source
    if (weights := f"ImageNet weights of {network}") not in _absent:
        _absent.append(weights)
    return "random"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state_dict without running code from its file; a damaged file, or more than tensors, is a UserError."""
    state = load(path, "state_dict", "delete it and download it again")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state_dict (names and tensors only), got {type(state).__name__}")
    return state


def state_of(network: str, source: str) -> Mapping[str, Tensor]:
    """Return the weights of ``find_weights``, or random ones where these are asked for or a trial lacks a file."""
    if or_random(network, source) == "random":
        return random_network(network).state_dict()
    return read_found(network, source)[1]


def read_found(network: str, source: str) -> tuple[Path, Mapping[str, Tensor]]:
    """Return the file of ``find_weights`` and its tensors by torchvision's names; it may be a training's checkpoint."""
    path = find_weights(network, source)
    if source == "imagenet":
        return path, read_state_dict(path)
    weights = read_weights(path, names=without_weights(network).state_dict())
    if weights.choice:
        logging.getLogger("basicsr").info(f"{network}: {weights.choice} of {path}")
    return path, weights.state


def without_weights(network: str) -> Any:
    """Build a torchvision network on the meta device, where weights that are replaced take no time or memory."""
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        return models.get_model(network, weights=None)
    # RegNet computes its widths in tensors, which need their values.
    with torch.random.fork_rng(devices=[]):
        return models.get_model(network, weights=None).to("meta")


def load_backbone(network: str, source: str) -> Any:
    """Build a torchvision network with its weights; a UserError if these are not available, or another network's.

    A checkpoint without the classifier, as left by self-supervised training, is accepted: missing tensors stay on the
    meta device, and ``FrozenFeatures`` raises an error if they are needed. Of the source ``random`` all stay there, and
    the caller fills the part it needs with ``initialise_randomly``; for others see ``find_weights``.
    """
    net = without_weights(network)
    if source == "random":
        return net
    path, found = read_found(network, source)
    body = [name for name, _ in net.named_parameters() if name.partition(".")[0] not in HEADS]
    # OpenMMLab's and Lightning's stand below a name of their own, beside the head.
    for start in [name.removesuffix(body[0]) for name in found if name.endswith(f".{body[0]}")]:
        if body[0] not in found and all(start + name in found for name in body):
            found = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
    # The classifiers of a file may be of other sizes, and are not needed.
    state = {name: value for name, value in found.items() if name.partition(".")[0] not in HEADS}
    try:
        # Assigned: a copy of values to the meta device would keep none.
        _, unexpected = net.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not contain the weights of {network}: {' '.join(str(error).split())}") from error
    # Names beside the network's own parts may be a self-supervised training's; foreign layers in its parts are not.
    children = {name for name, _ in net.named_children()}
    foreign = [name for name in unexpected if name.partition(".")[0] in children]
    if foreign or len(unexpected) == len(state):
        named = ", ".join((foreign or list(state))[:3])
        raise UserError(f"{path}: expected the weights of {network}, got {named or 'nothing'}")
    return net


@contextlib.contextmanager
def random_weights(network: str) -> Iterator[None]:
    """Draw seeded weights, log that they are not the paper's, and leave the global random state as it was."""
    if _absent is None:  # a trial has them in place of those that the options ask for
        text = "RANDOM weights (as the options ask). Its features are not ImageNet's: for trials and demos only."
        logging.getLogger("basicsr").warning(f"{network}: {text}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        yield


def random_network(network: str) -> nn.Module:
    """Build a torchvision network with its own initialisation, see ``random_weights``."""
    with random_weights(network):
        return models.get_model(network, weights=None)  # type: ignore[no-any-return]


def initialise_randomly(net: nn.Module, network: str) -> nn.Module:
    """Fill a network on the meta device: He's initialisation for convolutions, identity for batch-norm."""
    net.to_empty(device="cpu")
    with random_weights(network):
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
    return net
