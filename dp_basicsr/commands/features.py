"""Fig. 3: features of VGG19 (relu3_3) and ResNet-50 (second bottleneck of conv2) for one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import exit_on_user_error
from dp_basicsr.images.files import require_paths
from dp_basicsr.utils.arguments import Parser, output_file

# Those of Fig. 3, counted from 1.
PAPER_CHANNELS = (1, 64, 256)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("image", type=Path, help="8-bit colour image")
    parser.add_argument("--channels", type=int, nargs="+", default=list(PAPER_CHANNELS), help="channels, from 1 to 256")
    parser.add_argument("--weights", choices=["imagenet", "random"], default="imagenet", help="of both networks")
    parser.add_output(
        type=output_file("features.png"), default=Path("features.png"), help="picture to write: .png, .pdf or .svg"
    )
    args = parser.parse_args(argv)
    with exit_on_user_error():
        # Before the import of torch, which takes seconds.
        require_paths([args.image], "image")
        from dp_basicsr.evaluation.features import plot_features

        plot_features(args.image, args.output, args.channels, args.weights)
        print(f"wrote {args.output}")
    return 0
