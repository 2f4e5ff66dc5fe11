"""Write one self-contained HTML file that shows a training, its results and its images.

%(prog)s results/test_ESRGAN_DP_x4
%(prog)s experiments/ESRGAN_DP_x4_DIV2K results/test_ESRGAN_DP_x4 -o report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.images.files import require_paths
from dp_basicsr.report import LOSSLESS
from dp_basicsr.utils.arguments import Parser, output_file


def quality(text: str) -> int | None:
    """Parse ``--quality``."""
    if text in ("auto", "lossless"):
        return None if text == "auto" else LOSSLESS
    # The length first, because int() refuses thousands of digits with an error of its own.
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 100:
        raise UserError(f"--quality: expected auto, lossless or a number from 1 to 100, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_OR_EVAL_DIR", help="folder of a training, a test or an evaluation"
    )
    parser.add_output(
        type=output_file("report.html"), help="HTML file to write (default: report.html in the last folder)"
    )
    parser.add_argument("--quality", default="auto", help="image quality: auto, lossless, or 1 to 100 (WebP)")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        # Inside the block that shows a UserError as one line, so not argparse's `type`.
        encoding = quality(args.quality)
        require_paths(args.folders, "folder")
        from dp_basicsr.report.build import write_report

        out = write_report(args.folders, args.output or args.folders[-1] / "report.html", encoding)
        print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0
