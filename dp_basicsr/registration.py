"""Registration with BasicSR, which need not be installed for upscaling, exporting, the page and the plain loss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

Kind = Literal["arch", "dataset", "loss", "metric", "model"]
Member = TypeVar("Member", bound=Callable[..., Any])

REGISTRIES = "basicsr.utils.registry"  # module of BasicSR

_waiting: list[tuple[Kind, Callable[..., Any]]] = []


def register(kind: Kind) -> Callable[[Member], Member]:
    """Return a decorator that puts a class or function into BasicSR's registry of this kind, under its own name.

    BasicSR is not imported for it, which takes two seconds: what is decorated before enters the registries when
    BasicSR is imported.
    """

    def decorate(member: Member) -> Member:
        if REGISTRIES in sys.modules:
            _add(kind, member)
        else:
            _waiting.append((kind, member))
        return member

    return decorate


def register_waiting(registries: Any = None) -> None:
    """Register what waits for BasicSR; called by ``compat`` right after the import of BasicSR's registries."""
    while _waiting:
        _add(*_waiting.pop(0))


def _add(kind: Kind, member: Callable[..., Any]) -> None:
    getattr(sys.modules[REGISTRIES], f"{kind.upper()}_REGISTRY").register(member)


# Spyder and notebooks import this package anew in a session where BasicSR stays, and it refuses a name that it has.
for _kind in get_args(Kind) if REGISTRIES in sys.modules else ():
    _members = getattr(sys.modules[REGISTRIES], f"{_kind.upper()}_REGISTRY")._obj_map
    for _name in [name for name, member in _members.items() if member.__module__.startswith("dp_basicsr.")]:
        del _members[_name]
