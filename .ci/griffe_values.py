"""Let the API pages show the values of defaults: ``mu=0.5`` instead of ``mu=PAPER_MU``."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class Values(griffe.Extension):
    """Replace a default that names a constant of the package by the constant's value, if that is a literal."""

    def on_function_instance(self, *, func: griffe.Function, **others: Any) -> None:
        """Look at each parameter of a function."""
        for parameter in func.parameters:
            if isinstance(parameter.default, griffe.ExprName):
                self.waiting.append((func, parameter))

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[griffe.Function, griffe.Parameter]] = []

    def on_package(self, **others: Any) -> None:
        """Resolve the names once the whole package is known, because they may come from another module."""
        for func, parameter in self.waiting:
            try:
                constant = func.module[str(parameter.default)]
                value = ast.literal_eval(str(constant.value).removeprefix("MappingProxyType(").removesuffix(")"))
            except (KeyError, ValueError, SyntaxError, AttributeError, griffe.AliasResolutionError):
                continue
            parameter.default = repr(value)
