"""The option files' JSON schema, for editors: ``python -m dp_basicsr.checks.json_schema`` writes options/schema.json.

It is generated from the models used for checking, so that an editor completes keys and marks what the programs would
refuse. Rules for several values are not included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dp_basicsr.checks.signatures import VALUES, TypedEntry, model_of, typed_entries
from dp_basicsr.options.metrics import METRICS
from dp_basicsr.options.schema import DATASETS, Dataset, OptionFile

from pydantic import BaseModel

FILE = Path(__file__).resolve().parents[2] / "options" / "schema.json"

# Classes whose keys are listed; other class names are accepted with any keys.
SHOWN = {
    "network_g": ("RRDBNetDP", "RRDBNet", "MSRResNet"),
    "network_d": ("VGGStyleDiscriminator", "UNetDiscriminatorSN"),
    "train:pixel_opt": ("L1Loss", "MSELoss", "CharbonnierLoss"),
    "train:perceptual_opt": ("DPLoss", "PerceptualLoss"),
    "train:gan_opt": ("GANLoss",),
    "train:optim_g": ("Adam",),
    "train:optim_d": ("Adam",),
    "train:scheduler": ("MultiStepLR", "CosineAnnealingRestartLR"),
    "val:metrics": tuple(dict.fromkeys(metric.type for metric in METRICS.values() if "/" not in metric.type)),
}


def json_schema() -> dict[str, Any]:
    """Return the schema of an option file."""
    schema = OptionFile.model_json_schema()
    definitions = schema["$defs"]
    for path, names in SHOWN.items():
        *section, key = path.split(":")
        properties = (definitions[section[0].capitalize()] if section else schema)["properties"]
        entry = _by_type({name: _signature(typed_entries()[path], name, definitions) for name in names})
        if path == "val:metrics":
            # Metrics have names of the user's choice.
            entry = {"type": "object", "additionalProperties": entry}
        # Replaces "any mapping", and keeps the description of the key.
        entry = {"anyOf": [entry, {"type": "null"}]} if "anyOf" in properties[key] else entry
        properties[key] = {**entry, "description": properties[key]["description"]}
    # Replaced below by one schema for each type, which an editor can choose by `type`.
    definitions.pop("Dataset")
    sets = {name: _defined(model, definitions) for name, model in DATASETS.items()}
    any_set = {**_by_type(sets), "required": ["name", "type"]}
    any_set["properties"]["type"]["description"] = Dataset.model_fields["type"].description
    patterns = {"^(train|(val|test)(_.*)?)$": any_set}
    description = schema["properties"]["datasets"]["description"]
    schema["properties"]["datasets"] = {
        "type": "object", "description": description, "patternProperties": patterns, "additionalProperties": False,
    }  # fmt: skip
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_without_titles(schema)}


def _signature(kind: TypedEntry, name: str, definitions: dict[str, Any]) -> dict[str, str]:
    reference = _defined(model_of(kind.classes[name], kind.given, kind.more), definitions)
    # torch's signatures change between versions, and the file must not.
    if kind.what == "optimizer":
        schema, kept = definitions[name], (*VALUES[name], "type")
        schema["properties"] = {key: value for key, value in schema["properties"].items() if key in kept}
        schema["additionalProperties"] = True
    return reference


def _defined(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, str]:
    """Add a model's schema and those it uses to the definitions; return a reference to it."""
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    definitions[model.__name__] = schema
    return {"$ref": f"#/$defs/{model.__name__}"}


def _by_type(schemas: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the schema of a mapping whose keys depend on its ``type``."""
    rules = [
        {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": schema}
        for name, schema in schemas.items()
    ]
    # An enum beside an empty schema: editors suggest the names, and accept others.
    kind = {"type": "string", "anyOf": [{"enum": list(schemas)}, {}]}
    return {"type": "object", "properties": {"type": kind}, "required": ["type"], "allOf": rules}


def _without_titles(value: Any) -> Any:
    """Remove pydantic's titles, which only repeat the keys."""
    if isinstance(value, dict):
        return {
            key: _without_titles(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))
        }
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    FILE.write_text(f"{json.dumps(json_schema(), indent=1)}\n", encoding="utf-8")
    print(f"written: {FILE}")
