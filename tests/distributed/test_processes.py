"""The processes that tests start."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from tests.support.processes import CONTEXT


def send_imported(pipe: Connection) -> None:
    pipe.send({"dp_basicsr.runs.training", "tensorboard", "torch._dynamo"} & sys.modules.keys())


def test_everything_is_imported_before_they_start() -> None:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=send_imported, args=(theirs,))
    process.start()
    assert len(ours.recv()) == 3
    process.join()
