"""Read option files and overrides safely: YAML as a tree of plain values."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.images.files import missing_hint
from dp_basicsr.utils.arguments import NETWORKS, advise

Options = dict[str, Any]

USED_OPTIONS = "options.json"  # in the experiment's folder: those of the last start that trained, with overrides

# A shipped file has about 150 values. A few lines with aliases of aliases can expand to millions.
MAX_VALUES = 100_000

# Range of torch's integers; Python refuses to print numbers of 5000 digits.
MAX_INT = 2**63

# Keys of names and files, whose values are text however they look: `name: 2024-01-01`, `name: 007`, `name: no`.
TEXT_KEYS = frozenset(
    {
        "name", "suffix", "dataroot_gt", "dataroot_lq", "dataroot_flow", "meta_info_file", "pretrain_network_g",
        "pretrain_network_d", "resume_state", "project", "resume_id", "filename_tmpl",
    }
)  # fmt: skip

LONGEST = 60  # maximum characters of a value in a message
# Of Windows' paths.
IN_SINGLE_QUOTES = "in double quotes \\ starts an escape: write a path in single quotes, or with /"


def quote(value: Any, quotes: bool = True) -> str:
    """Format a value for a message: one line, printable, shortened."""
    try:
        text = value if isinstance(value, str) and not quotes and value.isprintable() else repr(value)
    # A number with thousands of digits in a YAML set, which Python does not print.
    except ValueError:
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def read_options(path: str | Path, entries: Sequence[str] = ()) -> Options:
    """Read an option file, whose keys ``check_options`` checks, and ``override`` it by entries.

    What is no mapping of valid YAML is a UserError.
    """
    opt = parse_yaml(text_of(path), f"option file {path}")
    if not isinstance(opt, dict):
        got = "none" if opt is None else type(opt).__name__
        raise UserError(f"option file {path}: expected a mapping of options, got {got}")
    override(opt, entries)
    return opt


def text_of(path: str | Path) -> str:
    """Return the text of an option file; one that cannot be read is a UserError."""
    try:
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            # Reading a pipe would block.
            raise OSError(errno.EINVAL, "not a regular file; write it to one, or change keys with --force_yml")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"option file {path}: {error.strerror}; shipped ones: `{advise('options')}`, a run's: "
            f"experiments/NAME/{USED_OPTIONS}{missing_hint(path, USED_OPTIONS)}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"option file {path} is not valid YAML: it is not UTF-8 ({error}); save it as UTF-8, or, if it is "
            f"a network, upscale with it: `{advise('upscale', ['-m', str(path), '-i', 'IMAGES'])}`"
        ) from error
    # A path with a null byte.
    except ValueError as error:
        raise UserError(f"option file {path} is not valid YAML: {error}") from error


def parse_yaml(text: str, what: str) -> Any:
    """Parse a YAML text into a tree without shared objects; ``what`` begins the message of a UserError.

    It is raised for what is not valid, nested too deeply, or has more than MAX_VALUES values, or one above MAX_INT.
    """
    from dp_basicsr.options.loader import Loader

    import yaml

    try:
        return _copy(yaml.load(text, Loader=Loader), iter(range(MAX_VALUES)))
    except RecursionError:
        raise UserError(f"{what} is not valid YAML: nested too deeply, or an alias within itself") from None
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1}){_odd_sign(text, mark.line)}" if mark else ""
        if "escape" in str(error.problem):
            where += f"; {IN_SINGLE_QUOTES}"
        elif "for the tag" in str(error.problem):
            where += "; tags, and a base by one, are not read: copy the file, or change keys with --force_yml"
        elif "another document" in str(error.problem):
            where += "; a file is one run: take the --- out, or put what follows into a file of its own"
        elif "\\t" in str(error.problem):
            where += "; type spaces instead of the tab"
        elif "<stream end>" in str(error.problem) and what.startswith("--force_yml"):
            where += "; a value with blanks needs quotes in a shell: 'a:b=[1, 2]'"
        elif mark and re.search(r"""[:-] +([@`%*&[{"]|[^{]*: )""", [*text.splitlines(), ""][mark.line]):
            where += "; if this is a text, put it into single quotes"
        raise UserError(f"{what} is not valid YAML: {error.problem or error.context}{where}") from error
    # PyYAML passes on errors of int() and datetime().
    except Exception as error:
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error


def _odd_sign(text: str, line: int) -> str:
    """Name a character near a line that looks like a space or a plain sign of YAML and is none, if there is one."""
    for number, words in list(enumerate(text.split("\n"), 1))[line::-1][:3]:
        for sign in words.partition("#")[0]:
            # Spaces and marks without width; forms as wide as a Chinese character; typographic quotes.
            if not sign.isascii() and (
                unicodedata.category(sign) in ("Zs", "Cf", "Pi", "Pf") or unicodedata.east_asian_width(sign) == "F"
            ):
                name = unicodedata.name(sign, "a sign").lower()
                return f"; line {number} has a {name} (U+{ord(sign):04X}): type the plain sign"
    return ""


def _copy(value: Any, left: Iterator[int]) -> Any:
    """Copy a value without YAML's aliases, which share objects: completing one would change the others."""
    if next(left, None) is None:
        raise UserError(f"expected at most {MAX_VALUES} values, got more by aliases of aliases")
    if isinstance(value, int) and abs(value) >= MAX_INT:
        raise UserError("expected whole numbers of at most 63 bits, got a larger one")
    if isinstance(value, dict):
        return {_copy(key, left): _copy(item, left) for key, item in value.items()}
    return [_copy(item, left) for item in value] if isinstance(value, list) else value


def split_entry(entry: str) -> tuple[tuple[str, ...], str]:
    """Split ``a:b=value`` into ``(("a", "b"), "value")``; anything else is a UserError."""
    path, equals, text = entry.partition("=")
    keys = tuple(key.strip() for key in path.split(":"))
    if not equals or not all(keys):
        raise UserError(f"--force_yml: expected key:key=value, for example train:ema_decay=0.999; got {quote(entry)}")
    if len(keys) == 1 and text == os.path.expanduser("~"):
        # bash takes `val=~` for an assignment and puts the home folder there; no top-level key is a folder.
        text = "~"
    return keys, text


def override(opt: Options, entries: Sequence[str]) -> None:
    """Override options in place by entries of the command line, ``a:b:c=value``; a malformed one is a UserError.

    A value is parsed as YAML, so ``1e-4`` is a number and ``[1, 2]`` a list. Sections on the way that are missing or ~
    are made: ``check_options`` finds misspelt ones. A set for validation or test that is ~ is left out.
    """
    for entry in entries:
        (*parents, last), text = split_entry(entry)
        where = f"--force_yml {quote(entry, quotes=False)}"
        section = opt
        for key in parents:
            if section.get(key) is None:
                section[key] = {}
            if not isinstance(section[key], dict):
                raise UserError(f"{where}: expected a section {key!r}, got {quote(section[key])}; give all of {key}")
            section = section[key]
        try:
            value = parse_yaml(text, f"{where}: the value")
        except UserError:
            if last not in TEXT_KEYS:
                raise
            value = ""
        # A text is what is written, also with `#`, `&`, `*` or an odd quote. Quotes are YAML's; ~ and no text stay.
        is_yaml = last not in TEXT_KEYS or (text.lstrip()[:1] in ("'", '"', "[", "{") and value not in ("", {}))
        is_none = value is None and text.lstrip()[:1] not in ("#", "&")
        section[last] = value if is_yaml or is_none else text.strip()
    if isinstance(sets := opt.get("datasets"), dict):  # one whose lines are all commented out is no set
        for key in [key for key in sets if sets[key] is None and str(key).split("_")[0] in ("val", "test")]:
            del sets[key]
    for parent, key in (("network_g", "path"), ("path", "pretrain_network_g")):  # as -m finds a network in the box
        values = opt.get(parent)
        if isinstance(values, dict) and not os.path.exists(path := str(values.get(key))):
            # Also by its path in another installation, which a run's options have.
            name = path.rpartition("dp_basicsr/networks/")[2]
            values |= {key: str(NETWORKS / name)} if name in os.listdir(NETWORKS) else {}
