"""Which files are images. This module imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from glob import escape
from pathlib import Path
from unicodedata import normalize

from dp_basicsr.errors import UserError, shorten

# Suffix of a written image -> Pillow's name of the format.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
READ_SUFFIXES = (*FORMATS, ".gif", ".apng", ".avif")  # upscaling: results of the last three are PNG files
IMAGE_SUFFIXES = (*FORMATS, ".gif")  # training: what OpenCV reads
LOSSLESS_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
QUALITY = 95  # of JPEG and WebP


class BadImageError(UserError):
    """One image file cannot be used; the message gives the reason, the caller adds the file."""


def find_images(folder: Path, is_image: Callable[[Path], bool] | None = None) -> list[Path]:
    """List the images of ``folder``, by suffix or ``is_image``, sorted, without hidden ones; none is a UserError."""
    if folder.is_file():
        raise UserError(f"expected a folder of images, got a file: {folder}; name its folder, or unpack it first")
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}, expected a folder of images{missing_hint(folder)}")
    paths = sorted(path for path in folder.iterdir() if _is_image(path, is_image))
    if not paths:
        inside = shorten(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        also = f"give its folders one by one ({inside})" if inside else left_out(folder)
        text = f"no image in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}"
        raise UserError("; ".join(filter(None, (text, also))))
    return paths


def left_out(folder: Path) -> str:
    """Summarise by suffix what ``find_images`` ignores in ``folder``; "" if nothing is ignored."""
    others = [path for path in folder.iterdir() if not (_is_image(path) or path.name.startswith("."))]
    kinds = Counter("folder" if path.is_dir() else path.suffix.lower() or "no suffix" for path in others)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{folder}: ignored {len(others)} that are not images ({counts})" if others else ""


def name_hint(names: Iterable[str], others: Iterable[str]) -> str:
    """Say so if some of ``names`` are no ``others``, but differ from one in a way that is easily missed; "" if none."""
    looks: dict[str, Callable[[str], str]] = {
        # macOS writes an accent as a character of its own (NFD), other systems mostly do not (NFC).
        "Unicode's form (NFC and NFD): rename those of one folder, as convmv does": partial(normalize, "NFC"),
        "capital letters: rename those of one folder": str.lower,
        "blanks, dashes or leading zeros: rename those of one folder": (
            lambda name: re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_\u2010-\u2015\u2212-]|%20", "-", name))
        ),
        "the suffix: name them with theirs, or convert those of one folder": (
            lambda name: Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
        ),
    }
    exact = set(others)
    unpaired = [name for name in names if name not in exact]
    # Whatever looks alike has the same digits, and of tens of thousands few have.
    digits = partial(re.sub, r"%20|[\D0]", "")
    numbers = set(map(digits, unpaired))
    near = [name for name in exact if digits(name) in numbers]
    for difference, look in looks.items():
        if {look(name) for name in unpaired} & {look(name) for name in near}:
            return f"; names that look alike differ in {difference}"
    return ""


def missing_hint(path: str | Path, kind: str = "network") -> str:
    """Say so if a path that is missing looks like what is there, or a run has others of this kind; "" if neither."""
    if re.match(r"\w{2,}:/", str(path)):  # a Path has one slash
        return "; download it first"
    asked = path = Path(os.path.expanduser(path))
    with suppress(OSError, ValueError):  # a folder that cannot be read, or what no system takes for a name
        if (plain := str(asked).strip("'\"")) != str(asked) and os.path.exists(os.path.expanduser(plain)):
            return "; it is there without the quotes"
        if asked.name == "None":
            return "; nothing is ~ or null in YAML"
        for run in path.parents:
            # BasicSR renames the folder of an earlier run.
            name = f"{escape(run.name)}_archived_*/{escape(str(path.relative_to(run)))}"
            if run.name and (old := sorted(run.parent.glob(name))):
                return f"; the earlier run of that name has {old[-1]}"
        path = next((part for part in (path, *path.parents) if part.parent.is_dir() and not part.exists()), path)
        suffix, kinds = path.suffix.lower(), ("", *IMAGE_SUFFIXES)
        kinds = kinds if suffix in kinds else (suffix,)
        near = [name for name in os.listdir(path.parent) if Path(name).suffix.lower() in kinds]
        if hint := name_hint([path.name], near) or "; folders are separated by /" * ("\\" in path.name):
            return hint
        inner = "models" if kind == "network" else "training_states"
        folders = (asked, asked / inner, asked.parent, *asked.glob(f"*/{inner}"))
        network = f"net_{'d' if asked.name.startswith('net_d_') else 'g'}_*.pth"
        name = {"network": network, "state": "*.state"}.get(kind, kind)  # or of a file
        files = [file for folder in folders for file in folder.glob(name)]
        if kind == "network" and not files:
            # Those of other programs, in a folder that was named, or of this name with another ending.
            stem = escape(asked.name.partition(".")[0])
            for ending in ("safetensors", "pth", "onnx", "param"):
                files += [*asked.glob(f"*.{ending}"), *asked.parent.glob(f"{stem}.{ending}")]
        if files:
            return f"; the newest {kind} there is {max(files, key=os.path.getmtime)}"
    return ""


def require_paths(paths: Sequence[Path], what: str) -> None:
    """Raise a UserError if files of the command line, which are ``what``, are missing: before slow imports."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        advice = hint = missing_hint(missing[0])
        with suppress(OSError):  # of a current folder that is gone
            advice = hint or ("" if os.path.isabs(missing[0]) else f" in {os.getcwd()}")
        if what == "model" and not hint:
            places = "download it first (openmodeldb.info has many), or leave out -m for the networks in the box"
            advice += f"; it is the path of a file, not the name of a published model: {places}"
        raise UserError(f"{what} {', '.join(missing)}: no such file or folder{advice}")


def is_file(path: Path) -> bool:
    """Return whether there is a file, or a link to nothing, which is read and thus named."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_image(path: Path, by: Callable[[Path], bool] | None = None) -> bool:
    if path.name.startswith(".") or not is_file(path):
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES if by is None else by(path)
