"""Figs. 5 to 9: one crop of one image for every method of an evaluation and the original, with metrics.

dp-basicsr evaluate --gt datasets/Set14/GT --result RCAN=... --bicubic -o results/set14
%(prog)s results/set14 baboon --crop 200,30,96,72 -o baboon.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import exit_on_user_error
from dp_basicsr.images.files import require_paths
from dp_basicsr.utils.arguments import Parser, output_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("evaluation", type=Path, help="folder that evaluate wrote, or results/<name> of a test")
    parser.add_argument("image", help="name of the image")
    parser.add_argument("--set", default="", help="its test set, if several have an image of this name")
    parser.add_argument("--crop", required=True, help="left,top,width,height in pixels of the original")
    parser.add_output(type=output_file("crops.png"), default=Path("crops.png"), help="the picture: .png, .pdf or .svg")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        # Before the imports, which take seconds: a misspelt path is reported at once.
        require_paths([args.evaluation], "evaluation")
        from dp_basicsr.evaluation.after_test import FOLDER
        from dp_basicsr.evaluation.crops import Crop, compare_crops, images_of
        from dp_basicsr.evaluation.files import JSON_NAME, read_evaluation

        # A test's folder has its evaluation one level down.
        inner = args.evaluation / FOLDER
        evaluation = read_evaluation(inner if (inner / JSON_NAME).is_file() else args.evaluation)
        images = images_of(evaluation, args.image, args.set)
        compare_crops(images, evaluation, Crop.parse(args.crop), args.output)
        print(f"wrote {args.output}")
    return 0
