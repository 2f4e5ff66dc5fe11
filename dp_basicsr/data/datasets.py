"""Open the data sets of the options, with files and LMDBs that BasicSR's datasets can read."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dp_basicsr.data.paired_raw_dataset  # noqa: F401  (registers it)
from dp_basicsr.data.lmdb_records import LmdbClient, lmdb_reader, meta_info_lines, refuse_damaged
from dp_basicsr.data.sources import listed_names, may_be_image, split_pair
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.images.files import find_images, missing_hint, name_hint
from dp_basicsr.images.png import without_remarks
from dp_basicsr.images.strict import orientation_if_single
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.atomic_io import longest_name

import lmdb
from basicsr import utils
from basicsr.data import build_dataloader, build_dataset, data_util, single_image_dataset
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader

# Suffixes of files whose first picture alone OpenCV would take, or with other colours.
CHECKED = (".gif", ".webp", ".tif", ".tiff", ".bmp")
# The key of a dataset's list, and the folder whose files it names.
_LISTED = {
    "PairedImageDataset": ("meta_info_file", "dataroot_gt"), "SingleImageDataset": ("meta_info_file", "dataroot_lq"),
    "RealESRGANDataset": ("meta_info", "dataroot_gt"), "RealESRGANPairedDataset": ("meta_info", "dataroot_gt"),
}  # fmt: skip


def how_to_get_data() -> str:
    """Return the commands that create the paper's data."""
    return f"to create the paper's data, run\n  {advise('data download', 'div2k')}\n  {advise('data extract')}"


def how_to_get_test_sets() -> str:
    """Return the command that downloads the paper's test sets."""
    return f"to download the paper's, run\n  {advise('data download', 'set5 set14 bsd100 urban100')}"


class DiskClient:
    """BasicSR's file client for files, whose errors are not OSErrors.

    RealESRGANDataset answers an OSError by drawing another image at random; then a missing file would never be noticed.
    """

    # BasicSR's datasets also pass which of an LMDB's roots is meant; for files the path says it all.
    def get(self, path: str | Path, client_key: str = "default") -> bytes:
        """Return a file's content. Raises UserError if it cannot be read, or has several pictures."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        if str(path).lower().endswith(CHECKED):
            orientation_if_single(content)
        return without_remarks(content)


def how_to_make_lq() -> str:
    """Return what makes the LQ fit to their GT."""
    cut = f"`{advise('data extract', '--lr-input')}`"
    return f"give the scale that they have, make the LQ with `{advise('data lr')}`, or cut both with {cut}"


def open_dataset(dataset_opt: dict[str, Any]) -> Any:
    """Build BasicSR's dataset; a fault of its files is a UserError: counts, names, a missing file, a damaged LMDB."""
    # BasicSR checks these keys with `in` only, and would open or format None.
    unset = [key for key in ("meta_info_file", "meta_info", "filename_tmpl") if dataset_opt.get(key, "") is None]
    dataset_opt = {key: value for key, value in dataset_opt.items() if key not in unset}
    name, kind = f"datasets: {dataset_opt['name']}", dataset_opt["type"]
    roots = [str(dataset_opt.get(key)) for key in ("dataroot_gt", "dataroot_lq")]
    try:
        # Before BasicSR opens them, because reading a damaged page would kill this process.
        for root in (root for root in roots if root.endswith(".lmdb")):
            lmdb_reader(root).open()
            refuse_damaged(root)
            lines = meta_info_lines(root, errors="replace")
            absent = {line.split(".")[0] for line in lines} - set(lmdb_reader(root).stored_keys())
            # With skip, missing records count as bad images, which are replaced while training.
            if absent and dataset_opt.get("on_bad_image") != "skip":
                text = f"{root} lacks {len(absent)} records that its meta_info.txt names, e.g. {min(absent)}"
                raise UserError(f"{text}: copy or create it again")
            # The first line alone, because BasicSR takes other LMDBs than ours as well.
            is_raw = ".raw (" in "".join(lines[:1])
            if kind != "PairedRawDataset" and is_raw:
                raise UserError(
                    f"{root} has raw records, which {kind} cannot read: set type: PairedRawDataset (to train), or "
                    f"convert it with `{advise('data lmdb', ['-i', root, '--lmdb', 'png', '-o', 'NEW.lmdb'])}`"
                )
        on_disk = (dataset_opt.get("io_backend") or {}).get("type") == "disk"
        key = _LISTED[kind][0] if kind in _LISTED and on_disk else ""
        is_listed = key in dataset_opt
        # The one dataset of BasicSR that needs a list; without it the folder's images are meant, as in the others.
        needs_list = kind == "RealESRGANDataset" and os.path.isdir(roots[0]) and key and not is_listed
        with images_alone(name):
            # BasicSR reads no list with blanks in names, empty lines or comments.
            dataset = build_dataset(dataset_opt | ({key: os.devnull} if is_listed or needs_list else {}))
            if needs_list:
                dataset.paths = data_util.paths_from_folder(roots[0])
    except KeyError as error:
        raise UserError(f"{name}: {kind} needs the key {error}") from error
    except (AssertionError, ValueError, OSError, lmdb.Error) as error:
        names = [os.listdir(root) if os.path.isdir(root) else [] for root in roots]
        template = dataset_opt.get("filename_tmpl", "{}")
        pairing = _pairing_hint(roots[0], roots[1], template) if type(error) in (AssertionError, ValueError) else ""
        raise UserError(f"{name}: {str(error).rstrip('.')}{name_hint(*names) or pairing}") from error
    if isinstance(getattr(dataset, "paths", None), list):
        if is_listed:
            dataset.paths = _listed_paths(dataset_opt)
        # BasicSR keeps the file system's order, which may differ between machines and therefore between ranks.
        dataset.paths.sort(key=str)
        # Of a list; a folder has been searched for images.
        for path in (path for entry in dataset.paths for path in files_of(entry)):
            if os.path.isfile(path) and not may_be_image(str(path)):
                raise UserError(f"{name}: expected images only, got {path}: take it off the list")
    # BasicSR makes its own client at the first sample, but only if there is none yet.
    backend = getattr(dataset, "io_backend_opt", None) or {}
    if "db_paths" in backend:
        dataset.file_client = LmdbClient(backend["db_paths"], backend.get("client_keys", "default"))
    elif backend.get("type") == "disk":
        dataset.file_client = DiskClient()
    return dataset


def _pairing_hint(gt_root: str, lq_root: str, template: str = "{}") -> str:
    """Say what pairs names that differ by an ending, as DIV2K's 0001.png and 0001x4.png, or what lists others."""
    is_lmdb = gt_root.endswith(".lmdb")
    if not os.path.isdir(gt_root) or not os.path.isdir(lq_root):
        return ""
    names = [meta_info_lines(root) if is_lmdb else os.listdir(root) for root in (gt_root, lq_root)]
    gt, lq = [{name.partition(".")[0] if is_lmdb else os.path.splitext(name)[0] for name in root} for root in names]
    for root, listed in ((gt_root, gt), (lq_root, lq)):
        if is_lmdb and (absent := set(lmdb_reader(root).stored_keys()) - listed):
            return f"; the meta_info.txt of {root} lacks {len(absent)} records, e.g. {min(absent)}: create it again"
        if not is_lmdb and not any(map(os.path.isfile, (os.path.join(root, name) for name in os.listdir(root)))):
            try:
                find_images(Path(root))
            except UserError as error:  # which names the folders in it
                return f"; {error}"
    if template != "{}" and set(names[0]) == set(names[1]):
        return "; the LQ have the names of the GT: filename_tmpl: '{}'"
    first = min(gt, default="")
    for ending in (name.removeprefix(first) for name in lq if name.startswith(first)):
        if ending and {name + ending for name in gt} == lq:
            way = "rename its images and pack them again" if is_lmdb else f"filename_tmpl: '{{}}{ending}'"
            return f"; the names of the LQ end in {ending}: {way}"
    lists = f"; `{advise('data check', ['--gt', gt_root, '--lq', lq_root])}` lists those without a partner"
    if any("_s0" in name for name in gt):  # sub-images, of which LQ cut to the size of the GT are fewer
        lists += f"; `{advise('data extract', '--lr-input')}` cuts both in one pass"
    return lists if gt != lq else ""


@contextmanager
def images_alone(name: str) -> Iterator[None]:
    """Leave out what is no image, such as Windows' Thumbs.db: BasicSR takes every file of a folder for one."""
    left_out: list[str] = []

    def scandir(folder: str, **how: Any) -> Iterator[str]:
        for file in utils.scandir(folder, **how):
            path = os.path.join(folder, file)  # `file` itself if it is a full path
            if may_be_image(path):
                yield file
            else:
                left_out.append(os.path.basename(path))

    modules: list[Any] = [data_util, single_image_dataset]
    for module in modules:
        module.scandir = scandir
    try:
        yield
    finally:
        for module in modules:
            module.scandir = utils.scandir
    if left_out:
        names = shorten(sorted(left_out))
        get_root_logger().warning(f"{name}: {len(left_out)} files are no images, and are left out: {names}")


def _listed_paths(dataset_opt: dict[str, Any]) -> list[Any]:
    """Return a dataset's ``paths`` from its list; refuse missing files and two GT that share an LQ."""
    kind = dataset_opt["type"]
    key, folder = _LISTED[kind]
    try:
        lines = listed_names(dataset_opt[key], Path(dataset_opt[folder]))
    except UserError as error:
        raise UserError(f"datasets: {dataset_opt['name']}: {error}") from error
    if is_paired := kind in ("PairedImageDataset", "RealESRGANPairedDataset"):
        roots = Path(dataset_opt["dataroot_gt"]), Path(dataset_opt["dataroot_lq"])
        split = (split_pair(line, *roots, dataset_opt.get("filename_tmpl", "{}")) for line in lines)
        paths: list[Any] = [{"lq_path": str(lq), "gt_path": str(gt)} for gt, lq in split]
    else:
        paths = [os.path.join(dataset_opt[folder], line) for line in lines]
    name = f"datasets: {dataset_opt['name']}: {key} {dataset_opt[key]}"
    if not paths:
        raise UserError(f"{name}: expected one file name per line, got none; without the key the folder's are taken")
    missing = [path for entry in paths for path in files_of(entry) if not os.path.isfile(path)]
    # With skip, missing files count as bad images, which are replaced while training.
    if missing and dataset_opt.get("on_bad_image") != "skip":
        has_gt = is_paired and all(os.path.isfile(pair["gt_path"]) for pair in paths)
        way = "; a line `gt, lq` names an LQ that is elsewhere than in dataroot_lq or the GT's subfolder of it"
        text = f"expected one file name per line, missing files: {len(missing)}, e.g. {missing[0]}"
        raise UserError(f"{name}: {text}{missing_hint(missing[0]) or (way if has_gt else '')}")
    # A list may name a.png of two folders, and both would get the same LQ.
    first: dict[str, str] = {}
    for lq, gt in (pair.values() for pair in paths if is_paired):
        if os.path.abspath(gt) == os.path.abspath(lq):
            raise UserError(f"{name}: {gt} would be its own LQ: write a line `gt, lq`, or name another dataroot_lq")
        if first.setdefault(lq, gt) != gt:
            raise UserError(f"{name}: {first[lq]} and {gt} would both be paired with {lq}: rename one of them")
    return paths


def paths_of(dataset: Any) -> list[Any]:
    """Return a dataset's ``paths``, a list in those of BasicSR; in others they may be anything, and count as none."""
    paths = getattr(dataset, "paths", None)
    return paths if isinstance(paths, list) else []


def files_of(entry: Any) -> Iterable[str]:
    """Return the files of an entry of a dataset's ``paths``: a path, or a mapping of paths."""
    return entry.values() if isinstance(entry, dict) else [entry]


def fingerprint(dataset: Any, *, with_sizes: bool = False) -> int:
    """Return a checksum, below 2^31, over the names (and sizes) of a dataset's files in their order."""
    files = [str(file) for entry in paths_of(dataset) for file in files_of(entry)]
    # Without the folders: a data set may have been moved. The records of an LMDB are no files.
    lines = [f"{os.path.basename(file)} {os.path.getsize(file) if with_sizes and os.path.isfile(file) else ''}"
             for file in files]  # fmt: skip
    return zlib.crc32(os.fsencode("\n".join(lines))) >> 1


def missing_folders(dataset_opt: dict[str, Any]) -> list[str]:
    """Return the data folders in a dataset's options that do not exist."""
    roots = (dataset_opt.get("dataroot_gt"), dataset_opt.get("dataroot_lq"))
    return [root for root in roots if root is not None and not Path(root).is_dir()]


def describe_empty(dataset_opt: dict[str, Any]) -> str:
    """Say of a set without images where there is none, and how those of subfolders are taken."""
    roots = [root for root in dict.fromkeys(map(dataset_opt.get, ("dataroot_gt", "dataroot_lq"))) if root]
    inside = sorted(str(path) for root in roots for path in Path(root).glob("*") if path.is_dir())
    return (
        f"no image directly in {' and '.join(roots)}: subfolders and archives are not searched; "
        f"{f'name one ({shorten(inside)}), ' if inside else ''}list what is in those of the GT in a meta_info_file, "
        "or unpack it"
    )


def evaluation_loaders(opt: dict[str, Any], phase: str) -> list[DataLoader]:
    """Build loaders for the data sets of a phase (``val`` or ``test``), without missing ones, which ``checks`` name."""
    logger, val, longest = get_root_logger(), opt.get("val") or {}, longest_name("results")
    loaders = []
    for dataset_opt in opt["datasets"].values():
        if dataset_opt["phase"] != phase or missing_folders(dataset_opt):
            continue
        dataset = open_dataset(dataset_opt)
        if len(dataset) == 0:
            logger.warning(f"{dataset_opt['name']} is skipped: {describe_empty(dataset_opt)}")
            continue
        # A name that no file can have is refused before its result is computed; see ``Validator``.
        for entry in paths_of(dataset) if val.get("save_img") else []:
            ending = opt["train"]["total_iter"] if phase == "val" else val.get("suffix") or opt["name"]
            path = str(entry.get("lq_path", "") if isinstance(entry, dict) else entry)
            if len(os.fsencode(f"{Path(path).stem}_{ending}.png")) > longest:
                text = f"its result's name, with _{ending}, is longer than {longest} bytes"
                raise UserError(f"{path}: {text}: rename it, or set `val: save_img: false`")
        # BasicSR loads these in the process itself, where torch refuses workers that persist.
        alone = dataset_opt | {"persistent_workers": False, "prefetch_mode": None}
        loaders.append(build_dataloader(dataset, alone, num_gpu=opt["num_gpu"], dist=opt["dist"]))
        logger.info(f"{dataset_opt['name']}: {len(dataset)} images")
    return loaders
