"""The base of all sections of an option file, and the types of their values."""

from __future__ import annotations

import os
from typing import Annotated, Any, TypeVar

from dp_basicsr.utils.atomic_io import longest_name

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import Self

# Keys with these prefixes belong to other programs: allowed in all sections but `path`, whose keys become folders.
FOREIGN = ("x_", "x-")

OURS = "ours"  # mark of a key that only the models of dp_basicsr read
T = TypeVar("T")
Ours = Annotated[T, OURS]


def whole(value: Any) -> Any:
    """Convert integral floats, because BasicSR's files write counts as ``!!float 5e3``."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _folder_name(value: str) -> str:
    """Check that a name, which becomes a folder or part of a file name, contains no path."""
    # Suffixes are added: 200 bytes where file systems allow 255.
    longest = longest_name("experiments") - 55
    is_long = len(value.encode()) > longest
    if value in ("", ".", "..") or not value.isprintable() or set(value) & set("/\\") or is_long:
        raise ValueError("the name of a folder or file" + is_long * f", of at most {longest} bytes")
    return value


def _expanduser(path: str) -> str:
    """Expand ``~``, and drop a slash at the end, with which BasicSR takes an LMDB for another folder."""
    return os.path.expanduser(path).rstrip("/") or path


Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(whole)]
FromZero = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
FilePath = Annotated[str, AfterValidator(_expanduser)]
Entry = dict[str, Any]  # arguments of the registered class named by `type`


class Section(BaseModel):
    """A mapping of known keys; values are not converted (no "3" for 3), and numbers are finite. It never changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        # So that "3" is no number and 1 not true: a typing error would otherwise run.
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # A key may be called model_type, which pydantic would warn of.
        protected_namespaces=(),
        # For editors: keys of other programs, as FOREIGN.
        json_schema_extra={"patternProperties": {"^x[_-]": {}}},
    )

    @classmethod
    def of(cls, values: Any) -> Self:
        """Return the section that a checked mapping describes, with the keys of other programs.

        It also takes the mapping that BasicSR hands to models and datasets: the keys that a run has added are kept
        like those of other programs.
        """
        return cls.model_validate(values, extra="allow")

    def as_dict(self) -> dict[str, Any]:
        """Return a new mapping for BasicSR: the keys that are set, and defaults other than None."""
        values = {key: getattr(self, key) for key in type(self).model_fields} | (self.model_extra or {})
        # BasicSR tests some keys by their presence, so a default of None stays out.
        return {
            key: _plain(value) for key, value in values.items() if value is not None or key in self.model_fields_set
        }


def _plain(value: Any) -> Any:
    """Copy a value: BasicSR removes the `type` of each entry that it builds."""
    if isinstance(value, Section):
        return value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
