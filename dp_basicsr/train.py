"""Train a model from an option file.

%(prog)s -opt options/train_esrgan_dp.yml --check
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # run as a file: this folder's packages (data, losses ...) must not become top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from dp_basicsr.compat import ON_ANY_DEVICE, complete_basicsr, read_lists_as_utf8, without_cuda
from dp_basicsr.errors import exit_on_user_error
from dp_basicsr.options import import_modules, parse_command_line, read_given_options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see ``--help``."""
    run_program(__doc__, argv, is_train=True)


def run_program(description: str, argv: Sequence[str] | None, is_train: bool) -> None:
    """Run train.py or test.py."""
    args = parse_command_line(description, argv, is_train)
    advice = "; --auto_resume continues from the last saved state" if is_train and not args.check else ""
    with exit_on_user_error(f"interrupted{advice}"):
        opt = read_given_options(args)
        # OpenMP's threads spin while they wait, which on a shared machine makes a step many times slower. Set before
        # the import of torch, which reads it.
        if not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

        complete_basicsr()
        # Imported late, because torch and BasicSR take seconds. The checks in the start register all classes.
        from dp_basicsr.distributed.launch import in_group
        from dp_basicsr.runs.start import start_run

        import_modules(args.imports)
        read_lists_as_utf8()
        with in_group():
            run = start_run(opt, args)
            with without_cuda(run.num_gpu == 0 and run.options.model_type not in ON_ANY_DEVICE):
                if not is_train:
                    from dp_basicsr.runs.testing import test

                    test(run)
                elif run.check:
                    from dp_basicsr.runs.trial import check

                    check(run)
                else:
                    from dp_basicsr.runs.training import train

                    train(run, args.opt)


if __name__ == "__main__":
    main()
