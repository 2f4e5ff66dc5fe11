"""Convert folders of images: LR images by MATLAB's bicubic, and packing into an LMDB."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.jobs import PrepJob, PrepReport, process_images
from dp_basicsr.data.preparation.writers import FolderWriter, LmdbWriter, Record, RecordForm, check_keys, make_record
from dp_basicsr.data.sources import ImageSource, find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import LOSSLESS_SUFFIXES, BadImageError, find_images
from dp_basicsr.images.strict import encode, read_image
from dp_basicsr.utils.arguments import advise
from dp_basicsr.utils.staging import refuse_alike, refuse_input


def create_lmdb(root: Path, output: Path, job: PrepJob, form: RecordForm = "png") -> PrepReport:
    """Pack the images of a folder or an LMDB (8 bit, gray or colour) into the new LMDB ``output``, keyed by name."""
    images = find_sources(root)
    refuse_input([root], [output])
    check_keys(source.name for source in images)
    pack = partial(pack_image, form=form, compression=job.compression)
    return process_images(images, pack, {output: LmdbWriter}, job, root)


def pack_image(source: ImageSource, form: RecordForm, compression: int) -> list[list[Record]]:
    """Decode one image and convert it to a record."""
    return [[make_record(form, source.key, source.read(), compression)]]


def make_lr(folder: Path, output: Path, scale: int, job: PrepJob) -> PrepReport:
    """Write the LR image of every image in ``folder`` under the same name into the folder ``output``.

    Images are cropped at the bottom and the right to a multiple of ``scale`` and shrunk by MATLAB's bicubic
    ``imresize``. BasicSR pairs by the full file name, so an HR image in a lossy format cannot have a lossless LR and
    is reported as bad.
    """
    if scale < 2:
        raise UserError(f"expected a scale of at least 2, got {scale}")
    images = find_images(folder)
    # Before the writer, which already creates its folder.
    refuse_input([folder], [output])
    refuse_alike(output / path.name for path in images)
    return process_images(images, partial(shrink_file, scale=scale), {output: FolderWriter}, job, folder)


def shrink_file(path: Path, scale: int) -> list[list[Record]]:
    """Downsample one image; return the record of the LR file."""
    image = read_image(path)
    if min(image.shape[:2]) < scale:
        raise BadImageError(f"is smaller than {scale} pixels")
    # The LR must have the HR's full name, by which BasicSR pairs, so its format is given.
    if path.suffix.lower() not in LOSSLESS_SUFFIXES:
        way = f"convert it to {LOSSLESS_SUFFIXES[0]} first, or cut it with `{advise('data extract')}`"
        raise BadImageError(f"would have a lossy LR of the same name: {way}")
    lr = downsample(image, scale)
    return [[Record(path.stem, encode(lr, path.suffix.lower()), (*lr.shape, 1)[:3], suffix=path.suffix)]]
