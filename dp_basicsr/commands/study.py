"""Run a study: train what is missing, test on the available sets, write the table.

Finished runs are skipped and interrupted ones resumed, so the command can simply be repeated. Studies: mu (Table 2),
beta (3), networks (4), correlation (5), comparison (6), ablation (7); and, not in the paper, terms (a third loss) and
small (what the second network adds, with seeds and intervals). They are declared in options/studies/*.yml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dp_basicsr.commands.evaluate import name_and_value
from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.evaluation.matching import BICUBIC, Method
from dp_basicsr.studies.study import NAMES, Study, read_smoke, read_study
from dp_basicsr.utils.arguments import Parser, advise
from dp_basicsr.utils.console import outlive_terminal

SMOKE_DATA = Path("datasets/demo/HR_sub.lmdb")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("study", choices=NAMES, help="name of the study")
    add("--smoke", action="store_true",
        help="run everything in minutes with demo data and small random networks; meaningless results")  # fmt: skip
    add("--gpus", type=int, help="number of parallel trainings, one per GPU; 0: the CPU (default: all GPUs)")
    add("--part", type=part, default=(1, 1), metavar="K/N",
        help="run the K-th of N parts, for N machines in parallel; writes no table")  # fmt: skip
    add("--no-training", action="store_true",
        help="only measure what is trained so far and write the table, also while another process trains")  # fmt: skip
    add("--force_yml", nargs="+", default=(), metavar="KEY=VALUE",
        help="overrides of every training, such as your data's folders")  # fmt: skip
    add("--dry-run", action="store_true", help="print the commands without running them")
    add("--retest", action="store_true", help="repeat tests, for example after installing LPIPS")
    add("--result", action="append", default=[], metavar="NAME=DIR",
        help="published images for a row of `comparison`, as for evaluate; may be repeated")  # fmt: skip
    add("--pattern", action="append", default=[], metavar="NAME=PATTERN", help="their file names, as for evaluate")
    return parser.parse_args(argv)


def part(text: str) -> tuple[int, int]:
    """Read ``K/N``."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected K/N, for example 2/7, got {text!r}")
    return int(number), int(count)


def given_images(args: argparse.Namespace, study: Study) -> list[Method]:
    """Return the published images given on the command line."""
    patterns = dict(name_and_value(text, "--pattern") for text in args.pattern)
    results = [name_and_value(text, "--result") for text in args.result]
    methods = [Method(name, Path(folder), patterns.get(name, "")) for name, folder in results]
    rows = [row.label for row in study.rows if not row.run and row.label != BICUBIC]
    unknown = [method.name for method in methods if method.name not in rows]
    if unknown:
        raise UserError(f"--result {unknown[0]}: rows of {study.name} that take images: {', '.join(rows) or 'none'}")
    return methods


def report(failed: Mapping[str, str]) -> int:
    """Print what failed and why; return the exit code."""
    for name, reason in failed.items():
        print(f"error: {name}: {reason.splitlines()[0]}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 1 if a training or a test failed."""
    args = parse(argv)
    with exit_on_user_error(), outlive_terminal():
        study, smoke = read_study(args.study), read_smoke() if args.smoke else None
        seeds = study.seeds[:2] if smoke else study.seeds
        if smoke:
            # Behind its own, which would win otherwise.
            smoke = replace(smoke, train=(*smoke.train, *args.force_yml))
        study = replace(study, seeds=seeds, overrides=(*study.overrides, *args.force_yml), smoke=smoke)
        number, count = args.part
        # Checked before the trainings, which take days.
        given = given_images(args, study)
        from dp_basicsr.studies.calibration import calibrate
        from dp_basicsr.studies.judging import judge_runs
        from dp_basicsr.studies.results import write_study
        from dp_basicsr.studies.runner import Runner, make_jobs, show_plan

        import torch

        if not (args.dry_run or args.no_training):
            if smoke and not SMOKE_DATA.is_dir():
                from dp_basicsr.studies.demo import prepare_photographs

                prepare_photographs()
            # Before the jobs are made, whose overrides contain the calibrated weights.
            calibrate(study)
        # Every N-th, so that long and short trainings spread over the machines.
        jobs = make_jobs(study)[number - 1 :: count]
        if args.dry_run:
            show_plan(jobs, args.retest)
            if not jobs:
                print(f"# part {number} of {count} has no trainings")
            return 0
        if args.no_training:
            missing = [job.name for job in jobs if not job.is_trained()]
            jobs = [job for job in jobs if job.is_trained()]
            print(f"not trained yet: {', '.join(missing) or 'none'}", flush=True)
        gpus = torch.cuda.device_count()
        if (args.gpus or 0) > gpus:
            raise UserError(f"--gpus {args.gpus}: expected at most {gpus}, the GPUs here; 0: the CPU")
        runner = Runner(gpus if args.gpus is None else args.gpus)
        try:
            runner.run(jobs, args.retest)
            # In this process, not by test.py: the blends need the start's images as well.
            if study.seeds:
                judge_runs(study, jobs)
        except (KeyboardInterrupt, SystemExit) as stop:
            print("stopped; the same command resumes from the last saved states", file=sys.stderr)
            # As a shell does for a command that a signal ended.
            return getattr(stop, "code", 130)
        # A part has not all cells; and several machines would write the same table.
        if count > 1:
            done = f"part {number} of {count} ({len(jobs)} trainings) is done"
            print(f"{done}; {advise('study', study.name)} writes the table when all are")
            return report(runner.failed)
        folder = write_study(study, given)
        print((folder / "table.md").read_text(encoding="utf-8"))
        print(f"wrote {folder}")
        return report(runner.failed)
