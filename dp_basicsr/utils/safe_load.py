"""Safe ``torch.load``: tensors and plain values, never code."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError, first_line

import torch
from torch import Tensor

# Far more than in the states of long runs on many processes, and still read in two seconds.
MAX_VALUES = 1_000_000
MAX_DEPTH = 50

MAX_STAND_INS = 100  # classes in a file that are replaced


def load(path: str | Path | io.BytesIO, what: str, advice: str = "", allowed: Sequence[type] = ()) -> Any:
    """Read what ``torch.save`` wrote, a file or its content, without running code from it (``weights_only=True``).

    ``what`` it is and the ``advice`` begin and end error messages; ``allowed`` classes may be in the file, too.

    Raises:
        UserError: The file does not exist, is damaged, or contains something else, which the message names.
    """
    try:
        if not isinstance(path, io.BytesIO) and not stat.S_ISREG(os.stat(path).st_mode):
            # Reading a pipe would block.
            raise OSError("it is a folder, or not a regular file")
        with contextlib.ExitStack() as stack:
            file = path if isinstance(path, io.BytesIO) else stack.enter_context(open(path, "rb"))
            stack.enter_context(torch.serialization.safe_globals(list(allowed)))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # torch warns about old file formats
            content = torch.load(file, map_location="cpu", weights_only=True)
            # torch compares no checksums; where it wrote none (``set_crc32_options``), the first one differs already.
            archive = zipfile.ZipFile(file) if zipfile.is_zipfile(file) else None
            if archive and archive.testzip() not in (None, archive.namelist()[0]):
                raise ValueError("its weights have another checksum, as after a broken copy")
        _require_plain(content, iter(range(MAX_VALUES)))
        return content
    except Exception as error:
        # torch.load may raise anything on a damaged file.
        reason = _reason(path, error)
        raise UserError(f"{what} {path} {reason}{f'; {advice}' if advice else ''}") from error


def load_beside_objects(path: str | Path, what: str) -> tuple[Any, UserError | None]:
    """Read a file as ``load`` does, with empty stand-ins for objects of other classes.

    Checkpoints of other programs contain settings and figures beside the weights: numbers of numpy, ``Namespace``,
    callbacks. Their classes are neither imported nor called. A file that is damaged, or calls what torch forbids
    altogether, is a UserError.

    Returns:
        The content, and the error of ``load`` if it has stand-ins.
    """
    stand_ins: dict[str, type] = {}
    refused = None
    while True:
        try:
            return load(path, what, allowed=tuple(stand_ins.values())), refused
        except UserError as error:
            refused = refused or error
            # torch names one refused class at a time, so each try gets one more stand-in.
            named = re.search(r"GLOBAL (\S+\.\S+)", str(error.__cause__))
            if not named or named[1] in stand_ins or len(stand_ins) == MAX_STAND_INS:
                raise refused from error
            module, _, name = named[1].rpartition(".")
            stand_ins[named[1]] = type(name, (_StandIn,), {"__module__": module, "__qualname__": name})


class _StandIn:
    """An empty object; its subclasses have the names of the classes in a file, by which torch finds them."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _require_plain(value: Any, left: Iterator[int], depth: int = 0) -> None:
    """Refuse unbounded nesting, and tensors that are not dense, not on the CPU or larger than their storage.

    A few bytes can encode a list inside itself, exponentially shared lists, or a tensor of any size.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} containers inside one another, or one inside itself")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise ValueError(f"a tensor of kind {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} without the values for it")
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            if next(left, None) is None:
                raise ValueError(f"more than {MAX_VALUES:,} values")
            _require_plain(item, left, depth + 1)


def _reason(path: str | Path | io.BytesIO, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        if name := named[1] if named else _first_global(path):
            way = "torch.save(model.state_dict(), FILE), where it was made, writes weights alone"
            return f"cannot be read: it contains more than weights ({name}), and code in files is never run; {way}"
    if "TorchScript" in str(error):
        advice = f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth') writes its weights"
        return f"cannot be read: it is a TorchScript program, and code in files is never run; if you trust it, {advice}"
    return f"cannot be read: it is damaged or not a checkpoint ({first_line(error).partition(' In PyTorch 2.6')[0]})"


def _first_global(path: str | Path | io.BytesIO) -> str | None:
    """Return the first class or function named in a bare pickle of another protocol, which torch.load does not read."""
    strings: list[str] = []
    with contextlib.suppress(Exception):  # it is no pickle either
        content = path.getvalue() if isinstance(path, io.BytesIO) else Path(path).read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                return f"{strings[-2]}.{strings[-1]}"
            if isinstance(argument, str):
                strings.append(argument)
    return None
