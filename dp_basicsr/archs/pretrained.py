"""torchvision's ImageNet networks: where their weights are looked for, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

from dp_basicsr.errors import UserError
from dp_basicsr.utils.safe_load import load

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn
from torchvision import models

# BasicSR's folder for pretrained networks, relative to where the program is started.
PRETRAINED_DIR = Path("experiments/pretrained_models")

# What torchvision shipped when the paper was written (torch 1.7), and what its code loads with pretrained=True.
WEIGHTS_ENTRY = "IMAGENET1K_V1"

# The classifiers of torchvision's networks, which no feature needs.
HEADS = frozenset({"fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2"})

# Seed of `weights: random`, so that two runs with random networks are comparable.
RANDOM_SEED = 0


def weights_url(network: str) -> str:
    """Public address of the IMAGENET1K_V1 weights of a torchvision network; its file name carries the checksum."""
    return models.get_model_weights(network)[WEIGHTS_ENTRY].url


def download_weights(network: str, folder: Path, progress: bool = True) -> Path:
    """Fetch a network's weights into ``folder`` and check them against the hash in the file name.

    Returns:
        The file. It is moved into place only when whole and correct.

    Raises:
        UserError: No network, a wrong checksum or an unwritable folder; it names address, file and folder.
    """
    url = weights_url(network)
    target = folder / url.rsplit("/", 1)[1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checksum = target.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(target), hash_prefix=checksum, progress=progress)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {network} are not on this machine and could not be downloaded ({error}). "
            f"Download {url} elsewhere and put the file {target.name} into {PRETRAINED_DIR}/ "
            f"(or run `python scripts/download_pretrained_models.py` with a network)"
        ) from error
    return target


def find_weights(network: str, source: str) -> Path:
    """Find the weights of a torchvision network.

    Args:
        network: torchvision's name, for example ``vgg19``.
        source: ``imagenet``, or the path of a torchvision state_dict. ``imagenet`` is looked for in
            :data:`PRETRAINED_DIR`, then in torch hub's cache, then downloaded into that cache.

    Raises:
        UserError: The path does not exist, or the weights are nowhere and cannot be downloaded.
    """
    if source != "imagenet":
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(
                f"weights of {network}: expected `imagenet`, `random` or a file, got {source!r} (no such file)"
            )
        return path
    name = weights_url(network).rsplit("/", 1)[1]
    hub_cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (PRETRAINED_DIR, hub_cache):
        if (folder / name).is_file():
            return folder / name
    return download_weights(network, hub_cache, progress=get_dist_info()[0] == 0)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from a file without running code from it (``weights_only=True``).

    Raises:
        UserError: The file is damaged, holds more than tensors, or is no state_dict.
    """
    state = load(path, "state_dict", "delete it and fetch it again")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds {type(state).__name__}, expected a state_dict: names and tensors alone")
    return state


def load_backbone(network: str, source: str) -> Any:
    """Build a torchvision network with its weights.

    A checkpoint without the classifier, as self-supervised training leaves it, is taken: what it does not hold stays on
    the meta device, and :func:`require_weights` refuses it where it is needed.

    Args:
        network: torchvision's name, for example ``resnet50``.
        source: ``imagenet``, a path (see :func:`find_weights`), or ``random``: the network stays on the meta device,
            for the caller to take the part it needs and fill it by :func:`initialise_randomly`.

    Raises:
        UserError: The weights cannot be had, or are those of another network.
    """
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        net = models.get_model(network, weights=None)
    if source == "random":
        return net
    path = find_weights(network, source)
    state = {name: value for name, value in read_state_dict(path).items() if name.partition(".")[0] not in HEADS}
    try:
        _, unexpected = net.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of {network}: {' '.join(str(error).split())}") from error
    children = {name for name, _ in net.named_children()}
    foreign = [name for name in unexpected if name.partition(".")[0] in children]
    if foreign or len(unexpected) == len(state):
        named = ", ".join((foreign or list(state))[:3])
        raise UserError(f"{path} does not hold the weights of {network}, but {named or 'nothing'}")
    return net


def require_weights(net: nn.Module) -> None:
    """Refuse a network with tensors on the meta device, which its file does not hold (UserError)."""
    missing = [name for name, value in net.state_dict().items() if value.is_meta]
    if missing:
        raise UserError(f"the weights of the perceptual network lack {len(missing)} tensors: {', '.join(missing[:3])}")


def random_network(network: str) -> nn.Module:
    """Build a torchvision network with its own random initialisation, seeded; the global random state is untouched."""
    warn_random(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return models.get_model(network, weights=None)  # type: ignore[no-any-return]


def warn_random(network: str) -> None:
    """Say in the log of every run that a network's features are not those of the paper."""
    get_root_logger().warning(
        f"{network}: RANDOM weights (as the options ask). Its features are not ImageNet's: for trials and demos only."
    )


def initialise_randomly(net: nn.Module, network: str) -> nn.Module:
    """Fill a network from the meta device as torchvision initialises it, seeded; the global random state is untouched.

    He initialisation for convolutions, identity for batch-norm.
    """
    warn_random(network)
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return net
