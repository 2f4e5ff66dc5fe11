"""Test a model on the available sets.

%(prog)s -opt options/test_esrgan_dp.yml
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: this folder's packages (data, losses ...) must not become top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from dp_basicsr.train import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see ``--help``."""
    run_program(__doc__, argv, is_train=False)


if __name__ == "__main__":
    main()
