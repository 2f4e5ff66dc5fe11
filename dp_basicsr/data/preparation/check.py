"""Check every pair of a data set before training: unreadable, mismatched and foreign files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dp_basicsr.data.lmdb_records import lmdb_reader, read_meta_info
from dp_basicsr.data.preparation.jobs import stderr_lines
from dp_basicsr.data.preparation.likeness import compare, other_pictures
from dp_basicsr.data.sources import ImageSource, find_sources, listed_names, may_be_image, split_pair
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError, find_images, missing_hint, name_hint
from dp_basicsr.images.opening import read_bytes
from dp_basicsr.images.strict import orientation_if_single
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.pool import available_cpus, ordered_map

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm


@dataclass(frozen=True)
class PairedSet:
    """A GT set and its LQ set, each a folder or an LMDB."""

    gt: Path
    lq: Path
    scale: int  # GT size divided by LQ size
    # Side of a training crop in GT pixels; None for a test set.
    gt_size: int | None = None
    template: str = "{}"  # BasicSR's ``filename_tmpl``: the LQ's name from the GT's, ``{}x4`` for DIV2K's own LR images
    names: tuple[str, ...] | None = None  # the GT files to use (``meta_info_file``); None for all

    def __str__(self) -> str:
        return f"{self.gt} and {self.lq}"


# What training can do with: reported, but no reason to stop a script.
HARMLESS = {"duplicate", "foreign", "aliased", "tone", "damaged", "depth"}
# Told of the first pair of a set alone: the others are made alike.
ONCE = {"aliased", "tone", "depth"}


@dataclass(frozen=True)
class BadData:
    """A problem: its kind (``unreadable``, ``size``, ...), the file or record, and a description."""

    kind: str
    path: str
    text: str


@dataclass
class Checked:
    """Result of checking one set."""

    pairs: int = 0
    problems: list[BadData] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(problem.kind for problem in self.problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing wrong"
        return f"{self.pairs:,} pairs: {counts}"


class Pair(NamedTuple):
    """One pair to read."""

    gt: ImageSource
    lq: ImageSource

    def __str__(self) -> str:
        return str(self.gt)


# Of a pair: its problems; if both images were read, a digest of their pixels; if they fit, their thumbnails.
ReadPair = tuple[list[BadData], bytes | None, NDArray[np.float32] | None]


def paired_sets(opt: dict[str, Any]) -> Iterator[tuple[str, PairedSet]]:
    """Yield the name and the paths of every data set in the options that has both GT and LQ."""
    for key, dataset in opt["datasets"].items():
        roots = [dataset.get(name) for name in ("dataroot_gt", "dataroot_lq")]
        if None in roots:
            continue
        gt, lq = (Path(root).expanduser() for root in roots)
        # The phase of a set is its key up to the first underscore, as in BasicSR.
        gt_size = dataset.get("gt_size") if key.split("_")[0] == "train" else None
        # BasicSR ignores a list for LMDBs, which have their own. The second key is RealESRGANPairedDataset's.
        meta = dataset.get("meta_info_file") or dataset.get("meta_info") if gt.suffix != ".lmdb" else None
        names = None if meta is None else tuple(listed_names(meta, gt))
        template = dataset.get("filename_tmpl") or "{}"
        yield f"{key} ({dataset.get('name')})", PairedSet(gt, lq, opt["scale"], gt_size, template, names)


def check_set(what: PairedSet, workers: int | None = None, seen: dict[bytes, Any] | None = None) -> Checked:
    """Check every pair of ``what`` in ``workers`` processes (None: one per CPU).

    ``seen`` has the pairs of the sets before by the digest of their pixels, and takes these. Problems of the set
    itself, such as a missing folder, are returned too.
    """
    checked = Checked()
    try:
        if what.names is None:
            gt, lq = (find_sources(root, may_be_image) for root in (what.gt, what.lq))
            left = {source.name: source for source in lq}
            partners = [f"{what.template.format(source.key)}{source.name[len(source.key) :]}" for source in gt]
            checked.problems += [problem for root in (what.gt, what.lq) for problem in _check_root(root)]
        else:
            split = [split_pair(name, what.gt, what.lq, what.template) for name in what.names]
            if not (what.lq.is_dir() or any(path.is_file() for _, path in split)):
                find_images(what.lq)  # says so once
            gt, partners = [ImageSource(path, path.stem) for path, _ in split], [str(path) for _, path in split]
            files = (path for path in {*what.lq.glob("*"), *(path for _, path in split)} if path.is_file())
            left = {str(path): ImageSource(path, path.stem) for path in files}
    except UserError as error:
        checked.problems.append(BadData("set", str(what), str(error)))
        return checked
    tasks, unpaired = _pair(what, gt, left, partners)
    checked.problems += unpaired
    seen = {} if seen is None else seen
    shown: list[tuple[str, NDArray[np.float32]]] = []
    told = set[str]()
    read = partial(read_pair, scale=what.scale, gt_size=what.gt_size)
    # Closed here: after an error, the traceback would keep the generator and its workers alive.
    with closing(ordered_map(read, tasks, workers or available_cpus())) as results:
        for task, result in zip(tasks, tqdm(results, total=len(tasks), unit="pair", disable=None), strict=True):
            name, (problems, digest, thumbnails) = str(task), result
            checked.pairs += 1
            problems = [problem for problem in problems if problem.kind not in told]
            told |= ONCE & {problem.kind for problem in problems}
            checked.problems += problems
            if digest is not None and (first := seen.setdefault(digest, (what, name))) != (what, name):
                text = "is in an earlier set, too" if first[1] == name else f"has the same pixels as {first[1]}"
                checked.problems.append(BadData("duplicate", name, text))
            if thumbnails is not None:
                shown.append((name, thumbnails))
    for name, other in other_pictures(shown):
        text = f"its LQ shows what {other} shows" if other else "its LQ does not show the same picture"
        checked.problems.append(BadData("content", name, text))
    return checked


def read_pair(pair: Pair, scale: int, gt_size: int | None) -> ReadPair:
    """Read both images of a pair and compare their sizes and what they show."""
    name, problems = str(pair), list[BadData]()
    images: list[NDArray[np.uint8]] = []
    for source in pair:
        try:
            with stderr_lines() as lines:
                try:
                    images.append(source.read())
                except BadImageError:
                    images.append(source.read(of_16_bits=True))
                    text = "has 16 bits per channel, of which training reads the upper 8"
                    problems.append(BadData("depth", str(source), f"{text} (others of the set are not listed)"))
        except BadImageError as error:
            problems.append(BadData("unreadable", str(source), str(error)))
            continue
        if damage := re.search("Corrupt JPEG data.*|IDAT: .*", "\n".join(lines)):
            problems.append(BadData("damaged", str(source), f"is decoded, in parts perhaps wrongly: {damage[0]}"))
    if len(images) < 2:
        return problems, None, None
    hashed = hashlib.blake2b(digest_size=16)
    for image in images:
        # With the shape, because images of other sides can have the same bytes.
        hashed.update(repr(image.shape).encode() + image.tobytes())
    digest = hashed.digest()
    turned = turned_hint(pair)
    (height, width), (lq_height, lq_width) = (image.shape[:2] for image in images)
    fault = ""
    # A GT that is not a multiple of the scale is cropped.
    if (height // scale, width // scale) != (lq_height, lq_width):
        fault = f"not {scale} times as large"
    elif gt_size is not None and min(height, width) < gt_size:
        fault = f"smaller than gt_size {gt_size}"
    if fault:
        text = f"is {width} x {height}, its LQ {lq_width} x {lq_height}: {fault}{turned}"
        return [*problems, BadData("size", name, text)], digest, None
    faults, thumbnails = compare(images[0], images[1], scale)
    problems += [BadData(kind, name, text + turned * (kind == "orientation")) for kind, text in faults]
    return problems, digest, thumbnails


def turned_hint(pair: Pair) -> str:
    """Name the images of a pair that EXIF turns; "" if it turns none."""
    files = [source.path for source in pair if source.shape is None]
    turned = " and ".join(str(path) for path in files if orientation_if_single(read_bytes(path)) > 1)
    return turned and f"; the EXIF orientation of {turned} is applied (`exiftool -Orientation= FILE` removes it)"


def refuse_turned(dataset: Any, scale: int) -> None:
    """Raise a UserError if EXIF turns one image of a pair against the other, in up to 16 of BasicSR's datasets."""
    # Others may have paths of another form, and ignore EXIF.
    is_known = type(dataset).__name__ in ("PairedImageDataset", "RealESRGANPairedDataset")
    pairs, turned = dataset.paths if is_known else [], list[Pair]()
    for entry in pairs[:: -(-len(pairs) // 16) or 1]:
        pair = Pair(*(ImageSource(Path(entry[key]), "") for key in ("gt_path", "lq_path")))
        with suppress(BadImageError):  # of a file, which the stream names, or of a record
            turned += [pair] if turned_hint(pair) else []
    for pair in turned[:4]:  # a photograph takes a second
        for problem in read_pair(pair, scale, None)[0]:
            if problem.kind == "orientation":
                raise UserError(f"{pair}: {problem.text}; `{advise('data check', '-opt FILE')}` lists all")


def _pair(
    what: PairedSet, gt: list[ImageSource], left: dict[str, ImageSource], partners: list[str]
) -> tuple[list[Pair], list[BadData]]:
    """Pair each GT with its partner among the LQ by name: records by key, files by the GT's with the template."""
    problems, tasks = list[BadData](), list[Pair]()
    taken, alone = {}, {}
    for source, name in zip(gt, partners, strict=True):
        if what.names is not None and not source.path.is_file():
            # Of the first alone: each hint looks through the folder, where tens of thousands may be missing.
            hint = "" if problems else missing_hint(source.path)
            problems.append(BadData("missing", str(source), f"does not exist, but the set's meta_info lists it{hint}"))
            continue
        partner = left.pop(name, None)
        if partner is not None:
            taken[name] = source
            tasks.append(Pair(source, partner))
        elif name in taken:
            problems.append(BadData("shared", str(source), f"would be paired with the LQ of {taken[name]}"))
        else:
            alone[name] = source
    lack = f"has no LQ in {what.lq}{name_hint(alone, left)}"
    problems += [BadData("missing", str(source), lack) for source in alone.values()]
    if what.names is None:
        # With a list, the LQ that it does not name are no error.
        problems += [BadData("missing", str(source), f"has no GT in {what.gt}") for source in left.values()]
    return tasks, problems


def _check_root(root: Path) -> Iterator[BadData]:
    """Yield a folder's files that are no images, and compare the records of an LMDB with its meta_info.txt.

    Missing records are found when they are read.
    """
    if root.suffix != ".lmdb":
        files = {path for path in root.iterdir() if path.is_file() and not path.name.startswith(".")}
        for path in sorted(files - set(find_images(root, may_be_image))):
            yield BadData("foreign", str(path), "is not an image, and is left out in training")
        return
    info = read_meta_info(root)
    for key in info.repeated:
        yield BadData("meta_info", str(root / key), "has more than one line in meta_info.txt")
    for key in lmdb_reader(root).stored_keys():
        if key not in info.shapes:
            yield BadData("meta_info", str(root / key), "is a record without a line in meta_info.txt")


def table(problems: Iterable[BadData]) -> str:
    """Format problems as a Markdown table, one per row."""
    rows = [(problem.kind, problem.path, " ".join(problem.text.split())) for problem in problems]
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in [("problem", "where", ""), *rows]) for column in (0, 1)]
    lines = [f"| {'problem':<{widths[0]}} | {'where':<{widths[1]}} | what |"]
    lines.append(f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|---|")
    return "\n".join(lines + [f"| {kind:<{widths[0]}} | {path:<{widths[1]}} | {text} |" for kind, path, text in rows])
