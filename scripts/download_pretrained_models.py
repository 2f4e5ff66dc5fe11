"""Download the perceptual networks in advance, for machines without network access."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.archs.perceptual_arch import RESNET_TYPES, VGG_TYPES
from dp_basicsr.archs.pretrained import PRETRAINED_DIR, download_weights, weights_url
from dp_basicsr.errors import exit_on_user_error

# alexnet and vgg16 are the backbones of LPIPS.
NETWORKS = ("alexnet", *VGG_TYPES, *RESNET_TYPES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "networks",
        nargs="*",
        default=["vgg19", "resnet50"],
        metavar="NETWORK",
        help=f"torchvision's {', '.join(NETWORKS)} (default: vgg19 resnet50)",
    )
    parser.add_argument("--output", type=Path, default=PRETRAINED_DIR, help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    for network in args.networks:
        if network not in NETWORKS:
            parser.error(f"expected one of {', '.join(NETWORKS)}, got {network!r}")
    with exit_on_user_error():
        for network in args.networks:
            target = args.output / weights_url(network).rsplit("/", 1)[1]
            if target.is_file():
                print(f"{target} already exists")
            else:
                print(f"wrote {download_weights(network, args.output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
