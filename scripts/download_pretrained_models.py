"""Download the perceptual networks in advance, for machines without network access."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError, exit_on_user_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "networks",
        nargs="*",
        default=["vgg19", "resnet50"],
        metavar="NETWORK",
        help="one of torchvision's VGG or ResNet networks, or alexnet (default: vgg19 resnet50)",
    )
    parser.add_argument("--output", type=Path, help="folder (default: experiments/pretrained_models)")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        from dp_basicsr.archs import pretrained
        from dp_basicsr.archs.perceptual_arch import RESNET_TYPES, VGG_TYPES

        networks = ("alexnet", *VGG_TYPES, *RESNET_TYPES)  # alexnet and vgg16 are the backbones of LPIPS
        for network in args.networks:
            if network not in networks:
                raise UserError(f"expected one of {', '.join(networks)}, got {network!r}")
        folder = args.output or pretrained.PRETRAINED_DIR
        for network in args.networks:
            target = folder / pretrained.weights_url(network).rsplit("/", 1)[1]
            if target.is_file():
                print(f"{target} already exists")
            else:
                print(f"wrote {pretrained.download_weights(network, folder)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
