"""Lets BasicSR 1.4.2 be built on Python 3.13 and newer: for that one ``pip install``, and for nothing else.

BasicSR's setup.py runs its version file through a bare ``exec`` inside a function and then takes ``__version__`` out of
``locals()``. Since Python 3.13 (PEP 667) that is a snapshot which ``exec`` no longer reaches, and the build dies with
``KeyError: '__version__'`` (BasicSR issue 749). ``frame.f_locals`` is a proxy that does write through, hence this
``exec``: it hands the caller's proxy to the real one.

Python imports a module of this name at start-up where it finds one, also in the processes that pip starts for a build::

    PYTHONPATH="$PWD/scripts/py313_basicsr_shim" pip install --no-build-isolation --no-deps "basicsr>=1.4.2"

``--no-build-isolation`` is needed because an isolated build replaces PYTHONPATH. Nothing is left behind: without this
PYTHONPATH the next Python has its own ``exec``. It can go when a BasicSR release installs on Python 3.13.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 13):
    _builtin_exec = builtins.exec

    def _exec(
        source: Any,
        /,
        globals: dict[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        *,
        closure: Any = None,
    ) -> None:
        """The built-in ``exec``, with the caller's own namespaces, writable, where it is given none."""
        if globals is None:
            caller = sys._getframe(1)
            globals = caller.f_globals
            locals = caller.f_locals if locals is None else locals
        _builtin_exec(source, globals, locals, closure=closure)

    builtins.exec = _exec


def _run_hidden_sitecustomize() -> None:
    """Run the machine's own sitecustomize (certificates, proxies, coverage), which this file stands in front of."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_run_hidden_sitecustomize()
