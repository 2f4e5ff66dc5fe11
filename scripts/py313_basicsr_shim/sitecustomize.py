"""Make BasicSR 1.4.2 installable on Python 3.13 and newer, for one ``pip install`` only.

BasicSR's setup.py runs its version file with a bare ``exec`` inside a function and then reads ``__version__`` from
``locals()``. Since Python 3.13 (PEP 667) that is a snapshot which ``exec`` does not update, so the build fails with
``KeyError: '__version__'`` (BasicSR issue 749). ``frame.f_locals`` is a write-through proxy, so this ``exec`` passes
the caller's proxy to the real one.

Python imports a module of this name at start-up, also in the processes that pip starts for a build::

    PYTHONPATH="$PWD/scripts/py313_basicsr_shim" pip install --no-build-isolation --no-deps "basicsr>=1.4.2"

``--no-build-isolation`` is needed because an isolated build replaces PYTHONPATH. Nothing is left behind: without this
PYTHONPATH, Python has its own ``exec``. This can be removed when a BasicSR release installs on Python 3.13.
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
        """Call the built-in ``exec``, by default with the caller's own writable namespaces."""
        if globals is None:
            caller = sys._getframe(1)
            globals = caller.f_globals
            locals = caller.f_locals if locals is None else locals
        _builtin_exec(source, globals, locals, closure=closure)

    builtins.exec = _exec


def _run_hidden_sitecustomize() -> None:
    """Run the machine's own sitecustomize (certificates, proxies, coverage), which this file shadows."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_run_hidden_sitecustomize()
