"""The model card: a page of Markdown beside an exported network."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.choices import EXPORTS
from dp_basicsr.deploy.export import limit_elsewhere
from dp_basicsr.errors import UserError

import yaml

UNSTATED = "not stated: ask whoever trained it before passing it on"

# The metadata block on top is what model hubs read.
_PAGE = """---
license: {license}
tags: [super-resolution, image-to-image, esrgan, dual-perceptual-loss]
pipeline_tag: image-to-image
---

# {name}

{title}, {parameters:,} parameters.
It takes {colours} images in [0, 1], (N, {channels}, H, W){sides}, and gives (N, {channels}, {scale} H, {scale} W), also
values beyond [0, 1]: clip them before rounding to levels, which otherwise wrap around.

Licence of the weights: {license_text}.

## Training

{training}

## Metrics

{metrics}

## Use

With this project: `dp-basicsr upscale -i photo.png -o results -m {word}`

{code}

{programs}

## Limits

It knows the kind of image, downsampling and noise that it was trained on; other blur, noise and compression come out
sharpened. A network trained with perceptual and adversarial losses invents plausible detail: do not read text, faces or
measurements from its output that the input does not have.
"""


def write_card(
    network: OpenedNetwork, kind: str, output: Path, facts: dict[str, str], metrics: str,
    dtype: str = "float32",
) -> Path:  # fmt: skip
    """Write ``<output>.md`` of an exported network; ``facts`` are ``describe``'s, ``metrics`` ``read_metrics``'s."""
    record, size = EXPORTS[kind], network.size
    sides = f" with H and W of {size.maximum}" if size.maximum else ""
    if size.multiple > 1:
        sides = sides or f" with H and W multiples of {size.multiple}"
    limit, license_name = limit_elsewhere(network, kind, output.stem), facts.get("license", "")
    colours = {"colours": "gray" if network.channels == 1 else "RGB", "channels": network.channels}
    page = _PAGE.format(
        **colours,
        name=output.stem,
        # `other` is the model hubs' word for a licence that is not in their list; a sentence would break the block.
        license=license_name.lower() if re.fullmatch(r"[\w.+-]+", license_name) else "other",
        license_text=license_name or UNSTATED,
        title=network.description,
        parameters=sum(parameter.numel() for parameter in network.module.parameters()),
        sides=sides,
        scale=network.scale,
        training=_training(facts),
        metrics=metrics,
        word=shlex.quote(output.name),
        code=record.use.format(
            file=output.name, shape=(1, network.channels, *size.fit(64, 64)), dtype=dtype, **colours
        ),
        programs=f"{limit[0].upper()}{limit[1:]}." if limit else record.programs,
    )
    card = record.card(output)
    card.write_text(page, encoding="utf-8", errors="surrogateescape")  # as a shell takes the names
    return card


def _training(facts: dict[str, str]) -> str:
    """Source, iteration, data and losses, then all options."""
    lines = [f"- file: `{facts['source']}` (SHA-256 `{facts['source_sha256']}`)"] if "source" in facts else []
    lines += [
        f"- {name}: {facts[name]}" for name in ("author", "interpolation", "iteration", "trained_by") if name in facts
    ]
    lines += [f"- data {name[8:]}: {value}" for name, value in facts.items() if name.startswith("dataset_")]
    lines += [f"- exported by: {facts['exported_by']}"] if "exported_by" in facts else []
    if "options" not in facts:
        return "\n".join([*lines, "- options: not known (no option file beside the weights' `models/` folder)"])
    options: dict[str, Any] = json.loads(facts["options"])
    lines += [f"- experiment: {options['name']} ({options['model_type']})"]
    losses = {name: value for name, value in (options.get("train") or {}).items() if name.endswith("_opt")}
    lines += [f"- {name}: `{json.dumps(value)}`" for name, value in losses.items()]
    block = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    lines += ["", "<details><summary>All options</summary>", "", f"```yaml\n{block}```", "", "</details>"]
    return "\n".join(lines)


def read_metrics(path: Path | None) -> str:
    """Return the table of metrics for a card, or that there is none; a UserError if ``path`` cannot be read."""
    if path is None:
        return "None were given at export (`--metrics FILE.md`: a table that names RGB or Y and the crop)."
    try:
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--metrics {path}: cannot be read ({error})") from error
    if not text:
        raise UserError(f"--metrics {path}: expected a file with a table")
    return text
