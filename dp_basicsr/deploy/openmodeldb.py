"""Describe an exported network as OpenModelDB asks for it (``data/models/*.json`` of its repository)."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path

from dp_basicsr.deploy.choices import EXPORTS
from dp_basicsr.errors import UserError

# Our names of architectures -> OpenModelDB's ids; others are their own names in lower case.
ARCHITECTURES = {"RRDBNetDP": "esrgan", "RRDBNet": "esrgan", "MSRResNet": "sr-res-net"}
FILL_IN = "FILL-IN"  # its validator refuses it where it wants an author or a tag of its lists


def write_entry(path: Path, kind: str, output: Path, facts: dict[str, str]) -> list[str]:
    """Write the JSON of a model whose file is ``output``; return the fields that the author has to fill in.

    ``kind`` must be one that ``check_format`` allows; ``facts`` are ``dp_basicsr.deploy.export.describe``'s.
    """
    train_set = (json.loads(facts.get("options", "{}")).get("datasets") or {}).get("train") or {}
    data = {name.removeprefix("dataset_"): value for name, value in facts.items() if name.startswith("dataset_")}
    counts = [int(match[1]) for value in data.values() if (match := re.search(r": (\d+) images", value))]
    training = {
        "trainingIterations": int(facts["iteration"]) if "iteration" in facts else None,
        "trainingBatchSize": train_set.get("batch_size_total") or train_set.get("batch_size_per_gpu"),
        "trainingHRSize": train_set.get("gt_size"),
        "dataset": ", ".join(data) or None,
        "datasetSize": sum(counts) or None,
    }
    entry = {
        "name": output.stem,
        "author": FILL_IN,
        "license": facts.get("license"),
        "tags": [FILL_IN],
        "description": f"{FILL_IN}: what it was trained for, and what it is good at",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "architecture": ARCHITECTURES.get(facts["arch"], facts["arch"].lower()),
        "size": [f"{facts[key]}{unit}" for key, unit in (("num_feat", "nf"), ("num_block", "nb")) if key in facts]
        or None,
        "scale": int(facts["scale"]),
        "inputChannels": int(facts.get("channels", 3)),
        "outputChannels": int(facts.get("channels", 3)),
        "resources": [
            {
                "platform": EXPORTS[kind].platform,
                "type": kind,
                "size": output.stat().st_size,
                "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
                "urls": [f"https://{FILL_IN}"],
            }
        ],
        **{name: value for name, value in training.items() if value},
        "images": [],
    }
    path.write_text(json.dumps(entry, indent=4, ensure_ascii=False), "utf-8", "backslashreplace")
    left = ["author", "tags", "description", "resources: urls", "images", *([] if "license" in facts else ["license"])]
    # Its validator takes the file's name for the model's id.
    start = f"{facts['scale']}x-"
    return left if path.name.startswith(start) else [*left, f"a file name that begins with {start}"]


def check_format(kind: str) -> None:
    """Raise a UserError for a format that OpenModelDB does not list."""
    if not EXPORTS[kind].platform:
        listed = ", ".join(name for name, record in EXPORTS.items() if record.platform)
        raise UserError(f"--openmodeldb: it lists {listed} files, got --format {kind}")
