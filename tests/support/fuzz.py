"""Generated tests: a fixed small sample, or new inputs for ``FUZZ_SECONDS`` seconds a test (``make fuzz``)."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", str(random.randrange(10**6) if SECONDS else 0)))


def draws(count: int) -> Iterator[random.Random]:
    """Random generators for ``count`` inputs, always the same; with a budget, new ones until it is spent.

    A failure prints the seed that ``FUZZ_SEED=`` repeats.
    """
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        if time.monotonic() > end if SECONDS else number >= count:
            return
        if SECONDS:
            print(f"FUZZ_SEED={SEED}, input {number}")
        yield random.Random(f"{SEED}/{number}")


def generated(count: int = 100, **changes: Any) -> Callable[[Any], Any]:
    """The same for a test that hypothesis draws for: ``@generated() @given(...)``."""
    options = hypothesis.settings(
        max_examples=count, deadline=None, derandomize=not SECONDS, database=None,
        suppress_health_check=list(HealthCheck), **changes,
    )  # fmt: skip

    def decorate(test: Any) -> Any:
        test = options(test)
        if not SECONDS:
            return test

        @functools.wraps(test)
        def for_some_time(*args: Any, **kwargs: Any) -> None:
            for rng in draws(0):
                hypothesis.seed(rng.random())(test)
                test(*args, **kwargs)

        return for_some_time

    return decorate


LONGEST_LINE = 700  # of a message; the list of the known keys is the longest


def judge(message: str) -> None:
    """Check that a message is not empty, printable, and in lines of limited length."""
    assert message == "right" or len(message) > 20, repr(message)
    for line in message.splitlines():
        assert len(line) <= LONGEST_LINE, line
        assert line.isprintable(), repr(line)


def sections(value: Any) -> list[Any]:
    """Every mapping and list within a value, itself first."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    itself = [value] if isinstance(value, (dict, list)) else []
    return itself + [section for item in inner for section in sections(item)]


LONGEST_CASE = 60  # seconds until a case counts as hanging


class HangError(BaseException):
    """A case that hangs; not caught by `except Exception`."""


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_CASE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ENDLESS = ("deep", "list in itself", "mapping in itself", "lists share lists", "mappings share mappings")


def endless(kind: str) -> Any:
    """A few bytes with unbounded nesting."""
    inner: Any = torch.ones(1)
    if kind == "deep":
        for _ in range(100):
            inner = [inner]
    elif kind == "list in itself":
        inner = []
        inner.append(inner)
    elif kind == "mapping in itself":
        inner = {}
        inner["params"] = inner
    else:
        for _ in range(40):
            inner = [inner] * 2 if kind == "lists share lists" else {"a": inner, "b": inner}
    return inner
