"""Install BasicSR 1.4.2 and what else training needs: ``python -m dp_basicsr.get_basicsr``.

Training needs BasicSR; upscaling, exporting, the web page and the plain loss do not. With plain
pip it has two problems:

- Its setup.py imports torch, so an isolated build downloads torch a second time. Here it is built in the environment.
- From Python 3.13 on it fails with ``KeyError: '__version__'`` (BasicSR issue 749): it runs its version file with a
  bare ``exec`` inside a function and reads ``__version__`` from ``locals()``, which PEP 667 made a snapshot. Python
  imports a ``sitecustomize`` from PYTHONPATH at start-up, also in the process that pip starts for the build: a copy of
  this file under that name lets ``exec`` write into the caller's variables there, and nowhere else.

This file imports nothing of the package, because `make setup` runs it first. It can go when BasicSR installs.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASICSR = "basicsr>=1.4.2"
TRAIN = (BASICSR, "lmdb", "lpips", "scipy")  # the extra `train`


def main() -> int:
    """Run the command; returns the exit code of pip."""
    if importlib.util.find_spec("pip"):
        install = [sys.executable, "-m", "pip", "install"]
    elif uv := shutil.which("uv"):  # its environments have no pip
        install = [uv, "pip", "install", "--python", sys.executable]
    else:
        print("error: expected pip in this environment, or uv: python -m ensurepip", file=sys.stderr)
        return 2
    if not importlib.util.find_spec("torch"):
        print("error: BasicSR is built with torch, which is not installed: pip install torch", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="dp_basicsr_") as folder:
        shutil.copyfile(__file__, Path(folder, "sitecustomize.py"))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        # The environment's own setuptools and torch build BasicSR; its dependencies are resolved after it is there.
        build = ["--no-build-isolation", "--no-deps", BASICSR]
        # BasicSR's tb-nightly imports pkg_resources, which setuptools 82 no longer has.
        for arguments, extra in ((["setuptools>=77,<82"], {}), (build, {"PYTHONPATH": path}), (list(TRAIN), {})):
            if code := subprocess.run([*install, *arguments], env={**os.environ, **extra}, check=False).returncode:
                return code
    print("BasicSR is installed: dp-basicsr train --help")
    return 0


def _let_exec_write() -> None:
    """Replace ``exec`` by one whose default namespaces are the caller's own, as before Python 3.13."""
    builtin_exec = builtins.exec

    def exec_in_caller(
        source: Any,
        /,
        globals: dict[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        *,
        closure: Any = None,
    ) -> None:
        if globals is None:
            caller = sys._getframe(1)
            globals = caller.f_globals
            locals = caller.f_locals if locals is None else locals  # a write-through proxy, unlike locals()
        builtin_exec(source, globals, locals, closure=closure)  # type: ignore[call-arg]  # since Python 3.11

    builtins.exec = exec_in_caller


def _run_hidden_sitecustomize() -> None:
    """Run the machine's own sitecustomize (certificates, proxies, coverage), which the copy of this file shadows."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if sys.version_info >= (3, 13):
        _let_exec_write()
    _run_hidden_sitecustomize()
elif __name__ == "__main__":
    argparse.ArgumentParser(description=str(__doc__).partition("\n")[0]).parse_args()
    raise SystemExit(main())
