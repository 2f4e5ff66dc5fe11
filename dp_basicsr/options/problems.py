"""One thing that is wrong with an option file: where it is, and how it reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.options.reading import LONGEST, compose, shown, split_entry

import yaml

Path = tuple[Any, ...]  # keys, and indices of lists, from the top of the file


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value at a path.

    Attributes:
        path: Of the key.
        text: What was expected, what came, what may have been meant.
        missing: A file or folder is not there: the options themselves are right.
        help: How to mend it, if that takes more than a few words; said once.
    """

    path: Path
    text: str
    missing: bool = False
    help: str = ""


class Places:
    """Where each value of an option file comes from: its line, or the override that has set it."""

    def __init__(self, file: str, entries: Sequence[str]) -> None:
        self.file = file
        self.entries = [(split_entry(entry)[0], entry) for entry in entries]
        self.root = _composed(file)

    def of(self, path: Path) -> tuple[int, str]:
        """Line and ``file:line`` of a key, or of the section that lacks it; 0 and the override that has set it."""
        for keys, entry in reversed(self.entries):
            if path[: len(keys)] == keys:
                return 0, f"--force_yml {shown(entry, quotes=False)}"
        line = _line_of(self.root, path)
        return line, f"{self.file}:{line}" if line else self.file


def _composed(file: str) -> yaml.Node | None:
    try:
        return compose(file)
    except (yaml.YAMLError, UserError, RecursionError):  # it has been replaced since it was read
        return None


def _line_of(node: yaml.Node | None, path: Path) -> int:
    """Line of the last key of ``path`` that is there (merged ones included), from 1; 0 for none."""
    line = 0
    for key in path:
        found = _child(node, key, set())
        if found is None:
            break
        key_node, node = found
        line = key_node.start_mark.line + 1
    return line


def _child(node: yaml.Node | None, key: Any, seen: set[int]) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the nodes of a key (or an index) and its value; ``seen`` are the mappings that need no second look."""
    if isinstance(node, yaml.SequenceNode):
        inside = isinstance(key, int) and key < len(node.value)
        return (node.value[key], node.value[key]) if inside else None
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return None
    seen.add(id(node))  # a file can merge a section into itself, or one section exponentially often
    for key_node, value in node.value:
        if key_node.value == str(key):
            return key_node, value
    merged = [value for key_node, value in node.value if key_node.value == "<<"]
    for value in merged:
        for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if (found := _child(one, key, seen)) is not None:
                return found
    return None


def report(file: str, problems: Sequence[Problem], entries: Sequence[str]) -> str:
    """All problems as one message, each on a line of its own, and then how to mend what takes more words."""
    places = Places(file, entries)
    placed = sorted(((*places.of(one.path), one) for one in problems), key=lambda entry: entry[0])
    lines = [": ".join([place, *([joined(one.path)] if one.path else []), one.text]) for _, place, one in placed]
    lines += dict.fromkeys(one.help for one in problems if one.help)
    return "\n".join(lines if len(problems) == 1 else [f"{file}: {len(problems)} problems", *lines])


def joined(path: Path) -> str:
    """A path as ``--force_yml`` spells it."""
    return ":".join(shown(key, quotes=False) for key in path)


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like a given one, if any is."""
    return next(iter(difflib.get_close_matches(str(name)[:LONGEST], list(known), n=1, cutoff=cutoff)), None)


def choose(name: Any, known: Iterable[str]) -> str:
    """``; did you mean X?`` where a known name is near, otherwise all of them, if they are few."""
    known = list(known)
    close = nearest(name, known)
    if close:
        return f"; did you mean {close}?"
    return f"; there are: {', '.join(known)}" if len(known) <= 20 else ""
