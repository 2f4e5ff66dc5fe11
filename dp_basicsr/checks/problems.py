"""A problem in an option file: its location and its message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from unicodedata import normalize

from dp_basicsr.errors import UserError
from dp_basicsr.options.loader import Loader
from dp_basicsr.options.reading import LONGEST, quote, split_entry, text_of

import yaml

Path = tuple[Any, ...]  # keys and list indices from the top of the file
KNOWN = "; there are: "
_KIND = re.compile("(Model|Loss|Dataset)$")  # of what a name is
Rule = tuple[Path, object, str]  # where a problem is, if the second is true, and its message


@dataclass(frozen=True)
class Problem:
    """A problem with the value at a path."""

    path: Path
    text: str  # what was expected, what was found, and what may have been meant
    missing: bool = False  # whether only a file or folder is missing
    help: str = ""  # longer instructions to fix it; printed once


def problems_of(rules: Iterable[Rule]) -> Iterator[Problem]:
    """Yield the problems of the rules that hold."""
    return (Problem(path, text) for path, holds, text in rules if holds)


def report(file: str, problems: Sequence[Problem], entries: Sequence[str]) -> str:
    """Format all problems as one message, one per line, followed by longer instructions."""
    lines = [*placed(file, problems, entries), *dict.fromkeys(problem.help for problem in problems if problem.help)]
    # A single line already names the file.
    return "\n".join(lines if len(problems) == 1 else [f"{file}: {len(problems)} problems", *lines])


def placed(file: str, problems: Iterable[Problem], entries: Sequence[str]) -> list[str]:
    """Format problems in the order of their lines, each with its line or the override that set its value."""
    overrides = [(split_entry(entry)[0], entry) for entry in entries]
    try:
        root = yaml.compose(text_of(file), Loader=Loader)
    # The file has changed since it was read: the problems are reported without lines.
    except (yaml.YAMLError, UserError, RecursionError):
        root = None
    lines = []
    for problem in problems:
        given = [entry for keys, entry in overrides if problem.path[: len(keys)] == keys]
        line, node = 0, None if given else root
        # That of the last key that there is, including merged ones.
        for key in problem.path:
            if (nodes := _child(node, key, set())) is None:
                break
            line, node = nodes[0].start_mark.line + 1, nodes[1]
        # A section that only the command line has.
        if not line:
            given = given or [entry for keys, entry in overrides if keys[: len(problem.path)] == problem.path]
        # The last override of a key is the one that holds.
        place = f"--force_yml {quote(given[-1], quotes=False)}" if given else f"{file}:{line}" if line else file
        lines.append((line, ": ".join(filter(None, [place, path_text(problem.path), problem.text]))))
    texts: list[str] = []
    for _, text in sorted(lines, key=itemgetter(0)):
        before, mark, known = text.partition(KNOWN)
        # An option file of another program may have dozens of unknown keys in one section.
        is_repeated = mark and any(other.endswith(mark + known) for other in texts)
        texts.append(before if is_repeated else text)
    return texts


def _child(node: yaml.Node | None, key: Any, seen: set[int]) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the nodes of a key (or an index) and its value; ``seen`` contains the mappings already visited."""
    if isinstance(node, yaml.SequenceNode):
        inside = isinstance(key, int) and key < len(node.value)
        return (node.value[key], node.value[key]) if inside else None
    # Sections can be merged recursively or exponentially often.
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return None
    seen.add(id(node))
    merged: list[yaml.Node] = []
    # Nodes have the text of a key, which may be a number in the path.
    for key_node, value in node.value:
        if key_node.value == str(key):
            return key_node, value
        if key_node.value == "<<":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
    # Only now, because the section's own keys take precedence over merged ones.
    return next(filter(None, (_child(section, key, seen) for section in merged)), None)


def path_text(path: Path) -> str:
    """Format a path like ``--force_yml``."""
    return ":".join(quote(key, quotes=False) for key in path)


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to ``name``, if any: first the one that differs in capitals alone."""
    names = list(known)
    # Without the ending of their kind, which makes any two alike.
    full = {_KIND.sub("", text): text for text in names} | {text: text for text in names}
    close = difflib.get_close_matches(_KIND.sub("", str(name))[:LONGEST], full, n=1, cutoff=cutoff)
    return next((text for text in names if text.lower() == str(name).lower()), full[close[0]] if close else None)


def hint(name: Any, known: Iterable[str], longest: int = 20) -> str:
    """Return ``; did you mean X?`` for a similar known name, otherwise the list of all if it is not too long."""
    known = list(known)
    if close := nearest(name, known):
        is_same = normalize("NFC", str(name)) == normalize("NFC", close)
        return f"; did you mean {close}{', in the other form of Unicode (NFC, NFD)' * is_same}?"
    return f"{KNOWN}{', '.join(known)}" if 0 < len(known) <= longest else ""


def registered_hint(name: Any, known: Iterable[str]) -> str:
    """Return the hint for the name of a registered class, which may also be another package's."""
    return f"{hint(name, known, 40)} (--import MODULE adds another package's)"
