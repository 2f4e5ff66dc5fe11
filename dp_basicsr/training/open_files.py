"""Raise the limit of open files for the loader's workers."""

from __future__ import annotations

from contextlib import suppress


def raise_open_file_limit() -> None:
    """Raise this process's limit of open files to the hard limit, up to 65,536.

    Each worker and each batch that waits needs several; the usual soft limit of 1024 is for programs that use
    ``select``.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a second, lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
