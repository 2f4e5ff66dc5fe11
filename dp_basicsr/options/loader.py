"""How YAML is read. Imported late, so that a missing PyYAML is one message."""

from __future__ import annotations

import re
from typing import Any

from dp_basicsr.options.reading import TEXT_KEYS

import yaml


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader (never constructs objects) with YAML 1.2's floats: ``1e-4`` is a number.

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
            # `<<` may stand more than once: each merges another section.
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
