"""Code shared by the data preparation commands: the pool, reporting bad images, committing results."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from dp_basicsr.data.preparation.writers import FolderWriter, Record
from dp_basicsr.errors import UserError, first_of
from dp_basicsr.images.files import BadImageError, find_images, left_out
from dp_basicsr.images.strict import lost_colours
from dp_basicsr.utils.pool import available_cpus, ordered_map

from tqdm import tqdm

Item = TypeVar("Item")


@dataclass(frozen=True)
class PrepJob:
    """How to process a folder of images."""

    workers: int | None = None  # number of processes; None uses every CPU available to this process
    skip_bad: bool = False  # skip images that cannot be used instead of failing
    overwrite: bool = False  # replace existing outputs once the new ones are complete
    compression: int = 1  # PNG compression level, 0 to 9

    def __post_init__(self) -> None:
        if not 0 <= self.compression <= 9:
            raise UserError(f"expected a PNG compression from 0 to 9, got {self.compression}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"expected at least 1 worker, got {self.workers}")


@dataclass(frozen=True)
class PrepReport:
    """The committed outputs, the images that were skipped, and lines about what is not read."""

    written: list[FolderWriter]
    skipped: list[str]
    remarks: list[str]

    def __str__(self) -> str:
        lines = [f"skipped: {image}" for image in self.skipped] + [f"wrote {written}" for written in self.written]
        return "\n".join(lines + self.remarks + ([f"{len(self.skipped)} images skipped"] if self.skipped else []))


def process_images(
    items: Sequence[Item],
    function: Callable[[Item], Sequence[Sequence[Record]]],
    outputs: Mapping[Path, type[FolderWriter]],
    job: PrepJob,
    folder: Path,
) -> PrepReport:
    """Run ``function`` on every image in a pool, and write its results; the outputs appear when all are complete.

    ``str(item)`` names an image in messages; all are in ``folder``, or an LMDB. ``function`` must be importable from a
    module, and returns an image's records for each of ``outputs``, or raises a BadImageError.

    Raises:
        UserError: An output exists or cannot be written, images were bad (all of them are named; without
            ``job.skip_bad``), all images were bad, or a worker was killed.
    """
    bad, attempt = list[str](), partial(_records_or_reason, function=function)
    with ExitStack() as stack:
        # Discarded at the end of the block, which does nothing after the commit.
        writers = [stack.enter_context(kind(path, overwrite=job.overwrite)) for path, kind in outputs.items()]
        # Closed here: after an error, the traceback would keep the generator and its workers alive.
        results = stack.enter_context(closing(ordered_map(attempt, items, job.workers or available_cpus())))
        for result, lines in tqdm(results, total=len(items), unit="image", disable=None):
            for line in lines:
                tqdm.write(line, sys.stderr)
            if isinstance(result, str):
                bad.append(result)
            elif not bad or job.skip_bad:
                for writer, records in zip(writers, result, strict=True):
                    writer.write(records)
        # Skipping every image is no result either.
        if bad and not (job.skip_bad and len(bad) < len(items)):
            advice = "" if job.skip_bad else "; fix or remove them, or skip them with --skip-bad"
            head = f"{len(bad)} of {len(items)} images cannot be used (nothing was written{advice}):"
            raise UserError("\n  ".join([head, *first_of(bad)]))
        # All before the first commit, so that a full disk does not leave some outputs without the others.
        for writer in writers:
            writer.close()
        for writer in writers:
            writer.commit()
        remarks = [] if folder.suffix == ".lmdb" else [left_out(folder)]
        with suppress(BadImageError), stderr_lines():
            # Of the first one: the others of the folder are taken to be like it.
            if remarks and (text := lost_colours(first := find_images(folder)[0])):
                remarks.append(f"{first}: {text}")
        return PrepReport(writers, bad, list(filter(None, remarks)))


@contextmanager
def stderr_lines() -> Iterator[list[str]]:
    """Yield a list, then fill it with what libraries wrote to stderr: libjpeg and libpng tell of damage there alone."""
    lines, stderr = list[str](), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _records_or_reason(
    item: Item, function: Callable[[Item], Sequence[Sequence[Record]]]
) -> tuple[Sequence[Sequence[Record]] | str, list[str]]:
    with stderr_lines() as lines:
        # Returned, not raised: an error of a worker would end the pool, but all bad images are to be named.
        try:
            result: Sequence[Sequence[Record]] | str = function(item)
        except BadImageError as error:
            result = f"{item} {error}"
    # The pool's owner prints them: its stderr outlives a reader that is gone.
    return result, [f"{item}: {line}" for line in lines]
