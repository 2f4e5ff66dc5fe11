"""Command lines of ``dp-basicsr data``. What they do is imported after parsing, because it takes a while."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dp_basicsr.data.downloads.catalogue import SOURCES, download_dataset
from dp_basicsr.errors import UserError
from dp_basicsr.options import add_import_argument, import_modules, read_options
from dp_basicsr.utils.arguments import Parser
from dp_basicsr.utils.console import data_command

if TYPE_CHECKING:
    from dp_basicsr.data.preparation.jobs import PrepJob


def download(argv: Sequence[str] | None = None) -> int:
    """Download DIV2K and the benchmarks into datasets/, and make the benchmarks' LR images: resumable and verified."""
    parser = Parser(download.__doc__)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help=f"one or several of {', '.join(SOURCES)}")
    add("--root", type=Path, default=Path("datasets"), help="folder of the data sets")
    add("--base-url", help="download the archives, with the same file names, from this mirror")
    add("--scale", type=int, nargs="+", default=[4], help="scales of the benchmarks' LR images")
    add("--keep-archive", action="store_true", help="keep the archives after unpacking")
    args = parser.parse_args(argv)
    with data_command():
        for name in args.names:
            summary = download_dataset(
                name, args.root, base_url=args.base_url, keep_archive=args.keep_archive, scales=args.scale
            )
            # Flushed, as the next archive may take hours.
            print(summary, flush=True)
    return 0


def networks(argv: Sequence[str] | None = None) -> int:
    """Download the perceptual networks in advance, for machines without network access."""
    parser = Parser(networks.__doc__)
    parser.add_argument("networks", nargs="*", default=["vgg19", "resnet50"], metavar="NETWORK",
                        help="one of torchvision's classification networks")  # fmt: skip
    parser.add_output(type=Path, help="folder (default: experiments/pretrained_models)")
    args = parser.parse_args(argv)
    with data_command():
        from dp_basicsr.archs import pretrained
        from dp_basicsr.archs.any_network_arch import TORCHVISION_TYPES
        from dp_basicsr.archs.perceptual_arch import check_names

        # All of them before the first download.
        check_names("network", args.networks, TORCHVISION_TYPES)
        folder = args.output or pretrained.PRETRAINED_DIR
        targets = {network: folder / pretrained.weights_url(network).rsplit("/", 1)[1] for network in args.networks}
        for network, target in targets.items():
            if not target.is_file():
                print(f"wrote {pretrained.download_weights(network, folder)}")
            elif pretrained.is_original(target):
                print(f"{target} already exists")
            else:
                raise UserError(f"{target} {pretrained.OTHER}")
    return 0


def extract(argv: Sequence[str] | None = None) -> int:
    """Extract sub-images and their LR from a folder of HR images. Without arguments: the paper's DIV2K data."""
    parser = Parser(extract.__doc__)
    add = parser.add_argument
    # With the other defaults: 480 pixels, step 240, x4, which is BasicSR's preparation of DIV2K.
    parser.add_input(type=Path, default=Path("datasets/DIV2K/DIV2K_train_HR"), help="HR images (8 bit, gray or colour)")
    parser.add_output(type=Path, help="output folder (default: the parent of --input)")
    add("--crop-size", type=int, default=480, help="side of a sub-image in HR pixels")
    add("--step", type=int, default=240, help="distance between sub-images in HR pixels")
    add("--thresh-size", type=int, default=0, help="leftover of at most this many pixels gets no sub-image")
    add("--scale", type=int, nargs="+", default=[4], help="scales of the LR images")
    add("--lr-input", type=Path, nargs="+", default=[],
        help="cut these LR folders, one per scale, instead of downsampling")  # fmt: skip
    add("--format", choices=["lmdb", "png", "both"], default="lmdb", help="LMDBs, folders of PNG files or both")
    add("--lmdb", choices=["png", "raw"], default="png",
        help="record format: png for BasicSR, raw for PairedRawDataset")  # fmt: skip
    args = _parse_job(parser, argv)
    with data_command():
        from dp_basicsr.data.preparation.extract import Extraction, Window, extract_subimages
        from dp_basicsr.images.files import find_images

        window = Window(args.crop_size, args.step, args.thresh_size)
        scales, lr = tuple(args.scale), tuple(args.lr_input)
        what = Extraction(args.input, args.output, window, scales, lr, args.format, args.lmdb)
        print(extract_subimages(what, _job(args)))
        published = [source.images for source in SOURCES.values() if source.target.parts == args.input.parts[-2:]]
        if published and (count := len(find_images(args.input))) < published[0]:
            print(f"note: {args.input} has {count} of the {published[0]} images that were published")
    return 0


def lr(argv: Sequence[str] | None = None) -> int:
    """Create the LR images of a test set: crop to a multiple of the scale, MATLAB's bicubic, same names."""
    parser = Parser(lr.__doc__)
    parser.add_input(type=Path, required=True, help="folder of HR images, e.g. datasets/Set5/GT")
    parser.add_output(type=Path, required=True, help="folder to create, e.g. datasets/Set5/LRbicx4")
    parser.add_argument("--scale", type=int, default=4, help="HR size divided by LR size")
    args = _parse_job(parser, argv)
    with data_command():
        from dp_basicsr.data.preparation.convert import make_lr

        print(make_lr(args.input, args.output, args.scale, _job(args)))
    return 0


def lmdb(argv: Sequence[str] | None = None) -> int:
    """Pack a folder of images into an LMDB, or convert an LMDB, with PNG records (BasicSR) or raw records."""
    parser = Parser(lmdb.__doc__)
    parser.add_input(type=Path, required=True, help="folder of images (8 bit, gray or colour) or an LMDB")
    parser.add_output(type=Path, required=True, help="the LMDB folder to make; its name ends with .lmdb")
    parser.add_argument("--lmdb", choices=["png", "raw"], default="png",
                        help="record format; raw is for PairedRawDataset")  # fmt: skip
    args = _parse_job(parser, argv)
    with data_command():
        from dp_basicsr.data.preparation.convert import create_lmdb

        print(create_lmdb(args.input, args.output, _job(args), args.lmdb))
    return 0


def _parse_job(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add the arguments that ``_job`` reads, and parse."""
    add = parser.add_argument
    add("--workers", type=int, help="number of processes (default: all CPUs available to this process)")
    add("--compression", type=int, default=1, help="PNG compression level, 0 (none) to 9 (slowest)")
    add("--skip-bad", action="store_true", help="report and skip images that cannot be used")
    add("--overwrite", action="store_true", help="replace existing output once the new one is complete")
    return parser.parse_args(argv)


def _job(args: argparse.Namespace) -> PrepJob:
    from dp_basicsr.data.preparation.jobs import PrepJob

    return PrepJob(args.workers, args.skip_bad, args.overwrite, args.compression)


def check(argv: Sequence[str] | None = None) -> int:
    """Check every pair of a data set, or of every set of an option file, and report what would break a training."""
    parser = Parser(check.__doc__)
    parser.add_option_file(required=False)
    add = parser.add_argument
    add("--gt", type=Path, help="folder or LMDB of the GT, instead of an option file")
    add("--lq", type=Path, help="folder or LMDB of the LQ")
    add("--scale", type=int, default=4, help="GT size divided by LQ size")
    add("--gt-size", type=int, default=128, help="side of a training crop, the minimum GT size")
    add("--test-set", action="store_true", help="full images of any size")
    add("--workers", type=int, help="number of processes (default: all available CPUs)")
    add_import_argument(parser)
    args = parser.parse_args(argv)
    problems, seen = [], dict[bytes, object]()
    with data_command():
        # Exactly one of the two ways, and the second with both folders.
        if (args.opt is None) == (args.gt is None) or (args.gt is None) != (args.lq is None):
            raise UserError("expected -opt FILE, or --gt and --lq")
        from dp_basicsr.data.preparation.check import HARMLESS, PairedSet, check_set, paired_sets, table

        # Before the sets are read, whose types the modules may register.
        import_modules(args.imports)
        if args.gt is not None:
            sets = [(str(args.gt), PairedSet(args.gt, args.lq, args.scale, None if args.test_set else args.gt_size))]
        elif not (sets := list(paired_sets(read_options(args.opt)))):
            text = "expected a set with dataroot_gt and dataroot_lq, got none: nothing is checked"
            raise UserError(f"{args.opt}: {text}")
        for name, pairs in sets:
            checked = check_set(pairs, args.workers, seen)
            print(f"{name}: {checked}", flush=True)
            problems += checked.problems
        if problems:
            print(f"\n{table(problems)}")
    # As for other mistakes in the input, so that scripts can stop before a training.
    return 0 if HARMLESS.issuperset(problem.kind for problem in problems) else 2
