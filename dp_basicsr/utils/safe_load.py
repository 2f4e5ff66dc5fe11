"""The one way in which files of torch are read: tensors and plain values, and never code."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError

import torch
from torch import Tensor

# Far more than the states of long runs on many processes have, and read in a second.
MAX_VALUES = 1_000_000
MAX_DEPTH = 50


def load(path: str | Path, what: str, advice: str = "", map_location: str = "cpu", allowed: Sequence[type] = ()) -> Any:
    """Read what ``torch.save`` has written, without running code from it (``weights_only=True``).

    Args:
        path: The file.
        what: Begins the message.
        advice: Ends it: how to mend that.
        map_location: Where the tensors go; ``meta`` reads their shapes alone.
        allowed: Classes beside tensors and plain values that may be in the file.

    Returns:
        The content.

    Raises:
        UserError: One line: no such file, damaged, or with something else in it, whose name it says.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is a folder, or no file on a disk")  # a pipe would be waited for
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old forms of files, and fails by itself where it must
            content = torch.load(path, map_location=map_location, weights_only=True)
        _require_plain(content, map_location)
        return content
    except Exception as error:  # what a damaged file makes of torch.load is of any kind
        reason = _reason(Path(path), error)
        raise UserError(f"{what} {path} {reason}{f'; {advice}' if advice else ''}") from error


def _require_plain(content: Any, device: str) -> None:
    """Refuse values without end, and tensors that are not dense, not on the device or larger than their storage.

    A few bytes can claim a list within itself, lists that share lists exponentially, or a tensor of any size.
    """
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, (Mapping, list, tuple)):
                count += len(value)
                if count > MAX_VALUES:
                    raise ValueError(f"more than {MAX_VALUES:,} values")
                inner += value.values() if isinstance(value, Mapping) else value
            elif isinstance(value, Tensor):
                _require_dense(value, device)
        if not inner:
            return
        level = inner
    raise ValueError(f"more than {MAX_DEPTH} containers inside one another, or one inside itself")


def _require_dense(value: Tensor, device: str) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != device:
        raise ValueError(f"a tensor of kind {value.layout} on {value.device}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {tuple(value.shape)} without the values for it")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        name = named[1] if named else _first_global(path)
        if name:
            return f"cannot be read: it holds more than weights ({name}), and no code is run from a file"
    if "TorchScript" in str(error):
        return "cannot be read: it holds more than weights (a TorchScript program), and no code is run from a file"
    return f"cannot be read: it is damaged or no checkpoint ({_first_line(error)})"


def _first_global(path: Path) -> str | None:
    """The first class or function that a bare pickle of another protocol names; torch.load does not read so far."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                return f"{strings[-2]}.{strings[-1]}"
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:  # no pickle
        return None
    return None


def _first_line(error: Exception) -> str:
    """What an exception says, in one line; torch's advice to load the file unsafely is left out."""
    text = str(error).partition("\n")[0].partition(" In PyTorch 2.6")[0]
    return text[:300] or type(error).__name__
