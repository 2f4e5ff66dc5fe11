"""Convert folders of images: LR images by MATLAB's bicubic, and packing into an LMDB."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.jobs import PrepJob, PrepReport, commit_all, process_images
from dp_basicsr.data.preparation.records import Record, RecordForm, check_keys, make_record
from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter
from dp_basicsr.data.sources import ImageSource, find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import LOSSLESS_SUFFIXES, BadImage, BadImageError, find_images, left_out
from dp_basicsr.images.strict import encode, read_image
from dp_basicsr.utils.staging import refuse_input


@dataclass(frozen=True)
class FileTask:
    """One image file to downsample."""

    path: Path
    scale: int

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class RecordTask:
    """One image to convert to a record."""

    source: ImageSource
    form: RecordForm
    compression: int

    def __str__(self) -> str:
        return str(self.source)


def create_lmdb(root: Path, output: Path, job: PrepJob, form: RecordForm = "png") -> PrepReport:
    """Pack the images of a folder or of another LMDB (8 bit, gray or colour) into the LMDB ``output``, keyed by name.

    Args:
        root: Folder or LMDB, of either format.
        output: LMDB to create; its name must end with ``.lmdb``.
        job: Workers, compression and what to do with bad images and existing output.
        form: Format of the records.

    Raises:
        UserError: See ``dp_basicsr.data.preparation.extract.extract_subimages``.
    """
    images = find_sources(root)
    refuse_input([root], [output])
    check_keys(source.name for source in images)
    with ExitStack() as stack:
        writer = LmdbWriter(output, overwrite=job.overwrite)
        # Does nothing after the commit.
        stack.callback(writer.discard)
        skipped = process_images(
            images,
            lambda source, _: RecordTask(source, form, job.compression),
            pack_image,
            lambda record: writer.write([record]),
            job,
        )
        others = "" if root.suffix == ".lmdb" else left_out(root)
        return PrepReport(commit_all([writer]), skipped, others)


def make_lr(folder: Path, output: Path, scale: int, job: PrepJob) -> PrepReport:
    """Write the LR image of every image in ``folder`` under the same name into the folder ``output``.

    Images are cropped at the bottom and the right to a multiple of ``scale`` and shrunk by MATLAB's bicubic
    ``imresize``. BasicSR pairs by the full file name, so an HR image in a lossy format cannot have a lossless LR and
    is reported as bad.

    Raises:
        UserError: See ``dp_basicsr.data.preparation.extract.extract_subimages``.
    """
    if scale < 2:
        raise UserError(f"expected a scale of at least 2, got {scale}")
    images = find_images(folder)
    # Before the writer, which already creates its folder.
    refuse_input([folder], [output])
    with ExitStack() as stack:
        writer = FolderWriter(output, overwrite=job.overwrite)
        stack.callback(writer.discard)
        skipped = process_images(
            images,
            lambda path, _: FileTask(path, scale),
            shrink_file,
            lambda file: writer.write_file(*file),
            job,
        )
        return PrepReport(commit_all([writer]), skipped, left_out(folder))


def pack_image(task: RecordTask) -> Record | BadImage:
    """Decode one image and convert it to a record."""
    try:
        return make_record(task.form, task.source.key, task.source.read(gray=True), task.compression)
    except BadImageError as error:
        return BadImage(task.source.location, str(error))


def shrink_file(task: FileTask) -> tuple[str, bytes] | BadImage:
    """Downsample one image; return its name and the encoded LR file."""
    try:
        image = read_image(task.path, gray=True)
        if min(image.shape[:2]) < task.scale:
            raise BadImageError(f"is smaller than {task.scale} pixels")
        # The LR must have the HR's full name, by which BasicSR pairs, so its format is given.
        suffix = task.path.suffix.lower()
        if suffix not in LOSSLESS_SUFFIXES:
            raise BadImageError(f"would have a lossy LR of the same name: convert it to {LOSSLESS_SUFFIXES[0]} first")
        return task.path.name, encode(downsample(image, task.scale), suffix)
    except BadImageError as error:
        return BadImage(task.path, str(error))
