"""Code shared by the data preparation commands: the pool, reporting bad images, committing results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from dp_basicsr.data.preparation.records import RecordSink, Written
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImage
from dp_basicsr.utils.pool import available_cpus, ordered_map

from tqdm import tqdm

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

_MAX_NAMED = 20  # bad images listed in one message; the rest is counted


@dataclass(frozen=True)
class PrepJob:
    """How to process a folder of images.

    Attributes:
        workers: Number of processes; None uses every CPU available to this process.
        skip_bad: Skip images that cannot be used instead of failing.
        overwrite: Replace existing outputs once the new ones are complete.
        compression: PNG compression level, 0 to 9.
    """

    workers: int | None = None
    skip_bad: bool = False
    overwrite: bool = False
    compression: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.compression <= 9:
            raise UserError(f"expected a PNG compression from 0 to 9, got {self.compression}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"expected at least 1 worker, got {self.workers}")


@dataclass(frozen=True)
class PrepReport:
    """What was written, which images were skipped, and a line about files that are not images."""

    written: list[Written]
    skipped: list[BadImage]
    left_out: str = ""

    def __str__(self) -> str:
        lines = [f"skipped: {image}" for image in self.skipped] + [f"wrote {written}" for written in self.written]
        lines += [self.left_out] if self.left_out else []
        return "\n".join(lines + ([f"{len(self.skipped)} images skipped"] if self.skipped else []))


def process_images(
    items: Sequence[Item],
    make_task: Callable[[Item, bool], Task],
    function: Callable[[Task], Result | BadImage],
    consume: Callable[[Result], None],
    job: PrepJob,
) -> list[BadImage]:
    """Run ``function(make_task(item, check_only))`` on every image and pass the good results to ``consume``, in order.

    After the first bad image, without ``job.skip_bad``, the rest is only checked, so that one run reports all bad
    images.

    Returns:
        The images that were skipped (``job.skip_bad``).

    Raises:
        UserError: Images were bad (without ``job.skip_bad``), all images were bad, or a worker was killed.
    """
    bad: list[BadImage] = []

    def tasks() -> Iterator[Task]:
        for item in items:
            yield make_task(item, bool(bad) and not job.skip_bad)

    # Closed here: after an error, the traceback would keep the generator and its workers alive.
    with closing(ordered_map(function, tasks(), job.workers or available_cpus())) as results:
        for result in tqdm(results, total=len(items), unit="image", disable=None):
            if isinstance(result, BadImage):
                bad.append(result)
            elif not bad or job.skip_bad:
                consume(result)
    if bad and not (job.skip_bad and len(bad) < len(items)):
        # Skipping every image is no result either.
        named = [f"  {image}" for image in bad[:_MAX_NAMED]]
        if len(bad) > _MAX_NAMED:
            named.append(f"  and {len(bad) - _MAX_NAMED} more")
        advice = "" if job.skip_bad else "; fix or remove them, or skip them with --skip-bad"
        head = f"{len(bad)} of {len(items)} images cannot be used (nothing was written{advice}):"
        raise UserError("\n".join([head, *named]))
    return bad


def commit_all(sinks: Sequence[RecordSink]) -> list[Written]:
    """Close all sinks before committing any, so that a full disk does not leave some outputs without the others."""
    for sink in sinks:
        sink.close()
    return [sink.commit() for sink in sinks]
