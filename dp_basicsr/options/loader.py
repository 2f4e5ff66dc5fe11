"""How YAML is read. Imported late, so that a missing PyYAML is one message."""

from __future__ import annotations

import os
import re
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.options.reading import TEXT_KEYS

import yaml


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader (never constructs objects) with YAML 1.2's numbers: ``1e-4`` is one, and ``010`` is ten.

    A duplicate key is an error here; PyYAML silently uses the last one. The values of TEXT_KEYS are text.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[misc]
        seen = set()
        for key, value in node.value:
            # By their looks only: of other tags some run code, and are refused.
            looks = value.tag.rpartition(":")[2] in ("int", "float", "bool", "timestamp")
            if looks and isinstance(key.value, str) and key.value in TEXT_KEYS:
                value.tag = "tag:yaml.org,2002:str"
            # Of a path with ` #` in it YAML reads the part before.
            comment = re.compile(r" +#[^\r\n]*").match(value.end_mark.buffer, value.end_mark.pointer)
            if comment and os.path.exists(os.path.expanduser(f"{value.value}{comment[0].rstrip()}")):
                raise UserError(f"line {value.end_mark.line + 1}: {comment[0].strip()} is a comment: quote the path")
            # `<<` may stand more than once: each merges another section.
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                # In braces `lr:1e-3` is a key without a value.
                is_empty = value.start_mark.pointer == value.end_mark.pointer
                if node.flow_style and is_empty and ":" in key.value and key.style is None:
                    raise UserError(f"line {key.start_mark.line + 1}: {key.value} needs a blank behind the colon")
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return node


# Without the numbers of YAML 1.1, to which 010 is eight and 1:30 ninety.
Loader.yaml_implicit_resolvers = {
    sign: [known for known in resolvers if not known[0].endswith((":int", ":float"))]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", ""), 16 if "x" in node.value else 10)
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\.?[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
