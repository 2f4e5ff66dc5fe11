"""Walk an LMDB in a process of its own: a damaged page is a bus error, which ends the process that reads it."""

from __future__ import annotations

import subprocess
import sys

from dp_basicsr.errors import UserError

_WALK = """
import sys, lmdb
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, readahead=False)
with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
    for key, value in cursor:
        bytes(value[:1]), bytes(value[-1:])
"""


def refuse_damaged(folder: str) -> None:
    """Touch both ends of every record of an LMDB; that takes about a second for 30,000 records.

    Raises:
        UserError: The LMDB is damaged.
    """
    done = subprocess.run([sys.executable, "-c", _WALK, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else f"reading it ends in signal {-done.returncode}"
        raise UserError(f"the LMDB {folder} is damaged ({reason}): copy or make it again")
