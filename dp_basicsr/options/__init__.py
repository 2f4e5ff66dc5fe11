"""Option files: read safely and overridden, typed, and completed by what the start of a run adds.

Modules in order: ``reading.py`` (YAML), ``command_line.py``, ``section.py``, ``schema.py`` (the typed keys), ``run.py``
(the options of one run). Importing this package does not import pydantic, torch or basicsr.
"""

from dp_basicsr.options.command_line import add_import_argument, import_modules, parse_command_line, read_given_options
from dp_basicsr.options.reading import USED_OPTIONS, Options, override, read_options

__all__ = [
    "USED_OPTIONS",
    "Options",
    "add_import_argument",
    "import_modules",
    "override",
    "parse_command_line",
    "read_given_options",
    "read_options",
]
