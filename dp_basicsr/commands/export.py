"""Export a trained generator as safetensors, .pth, ONNX or ncnn, with a check and a model card."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.deploy.choices import BOX, BOX_ALPHA, EXPORTS
from dp_basicsr.deploy.openmodeldb import check_format, write_entry
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import require_paths
from dp_basicsr.utils.arguments import Parser
from dp_basicsr.utils.console import data_command
from dp_basicsr.utils.staging import refuse_existing


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_model(default=BOX, help="weights; two are interpolated (default: the two networks in the box)")
    add("--alpha-interp", type=float, help="share of the second model, 0 to 1 (default: 0.8, in the box 0.5)")
    add("--scale", type=int, help="needed only if the weights do not determine whether they are x2 or x3")
    parser.add_output(required=True, help="file or folder to write to; its card goes to FILE.md")
    add("--format", choices=tuple(EXPORTS), help="what to write (default: from the suffix of --output)")
    add("--half", action="store_true", help="weights in fp16; with ONNX also input and output")
    add("--license", default="", help="licence of the weights, for the card, e.g. Apache-2.0")
    add("--metrics", type=Path, help="Markdown file with a table of metrics and their protocol, for the card")
    add("--openmodeldb", type=Path, metavar="FILE.json", help="also write the entry that OpenModelDB asks for")
    add("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    if args.model_path == BOX:
        args.alpha_interp = BOX_ALPHA if args.alpha_interp is None else args.alpha_interp
        args.license = args.license or "Apache-2.0"
    is_folder, args.output = args.output.endswith("/"), Path(args.output)
    if args.format is None:
        args.format = next((name for name in EXPORTS if args.output.suffix.lower() in EXPORTS[name].suffixes), None)
        if args.format is None:
            names = ", ".join(record.suffixes[0] for record in EXPORTS.values())
            parser.error(f"--output: expected a name with one of {names}, or --format; got {args.output}")
    record = EXPORTS[args.format]
    if is_folder or os.path.isdir(args.output):  # False for a name that is too long, where pathlib raises
        args.output /= Path(args.model_path[-1]).stem + record.suffixes[0]
    # Weights are known by their content, others by this suffix alone.
    elif record.engine and args.output.suffix.lower() not in record.suffixes:
        args.output = args.output.with_name(args.output.name + record.suffixes[0])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    output: Path = args.output
    with data_command():
        require_paths(args.model_path, "model")
        record = EXPORTS[args.format]
        files = record.files(output)
        # Before the network is loaded and converted, which may take minutes.
        outputs = [*files, record.card(output), *([args.openmodeldb] if args.openmodeldb else [])]
        refuse_existing(outputs, overwrite=args.overwrite)
        if folders := [str(path) for path in outputs if path.is_dir()]:
            raise UserError(f"{', '.join(folders)}: expected a file to replace, got a folder")
        if args.openmodeldb:
            check_format(args.format)
        from dp_basicsr.archs import load_network
        from dp_basicsr.deploy.card import read_metrics, write_card
        from dp_basicsr.deploy.export import describe, export_network, limit_elsewhere
        from dp_basicsr.deploy.provenance import trace

        # Before anything is written, because the file may be wrong.
        metrics = read_metrics(args.metrics)
        network = load_network(args.model_path, alpha_interp=args.alpha_interp, scale=args.scale)
        # The facts of a blend are those of the larger share.
        heavier = -1 if args.alpha_interp is None or args.alpha_interp >= 0.5 else 0
        facts = describe(network, trace(args.model_path[heavier], network.notes))
        facts |= {"license": args.license} if args.license else {}
        difference = export_network(network, args.format, output, facts, args.half)
        card = write_card(network, args.format, files[0], facts, metrics, "float16" if args.half else "float32")
        print(f"read {network.title}")
        print(f"wrote {', '.join(map(str, files))} ({network.description}) and {card}")
        if args.openmodeldb:
            left = write_entry(args.openmodeldb, args.format, files[0], facts)
            print(f"wrote {args.openmodeldb}; fill in {', '.join(left)}")
        # torch itself reads files of weights, so there is nothing to compare.
        if record.engine:
            print(f"difference from torch, relative to the largest value: {difference:.1e}")
        if limit := limit_elsewhere(network, args.format, files[0].stem):
            print(f"note: {limit}")
    return 0
