"""The architecture of an option file whose network is the one in a file."""

from __future__ import annotations

import logging
from pathlib import Path

from dp_basicsr.archs.open_network import SpandrelCall, open_network
from dp_basicsr.checkpoint.weights import read_weights
from dp_basicsr.errors import UserError
from dp_basicsr.registration import register
from dp_basicsr.utils.arguments import advise

from torch import nn


@register("arch")
def FromFile(path: str, scale: int | None = None, num_in_ch: int = 3) -> nn.Module:  # noqa: N802  (its name in options)
    """Build the network in a file with its weights, to continue training it.

    Args:
        path: ``.pth`` or ``.safetensors``; see ``read_weights``.
        scale: Required scale; models of this project pass that of the options.
        num_in_ch: Required number of input and output channels.

    Returns:
        The network itself, so that saved weights keep the names of its own architecture.

    Raises:
        UserError: The network is unknown, has another scale or number of channels, or does not map an image to an
            image.
    """
    network = open_network(read_weights(Path(path).expanduser()), scale)
    if scale not in (None, network.scale) or num_in_ch != network.channels:
        text = (
            f"network_g: path: expected a network {f'x{scale} ' if scale else ''}for images of {num_in_ch} channels, "
            f"as in the options; {path} is {network.description}, for {network.channels} channels"
        )
        if scale not in (None, network.scale):
            way = advise("upscale", f"--outscale {scale}")
            text += f"; CompactDP has any scale, and `{way}` resizes the results of this one"
        if num_in_ch != network.channels:
            text += "; on gray, one for 1 channel trains with num_in_ch: 1, and color: y in each set, one for 3 without"
        raise UserError(text)
    logging.getLogger("basicsr").info(f"network_g: {path}: {network.description} {network.choice}".rstrip())
    if isinstance(network.module, SpandrelCall):
        raise UserError(f"network_g: path: {path} is {network.description}, which does not map an image to an image")
    return network.module.train().requires_grad_(True)  # type: ignore[no-any-return]
