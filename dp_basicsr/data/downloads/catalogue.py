"""Download the data sets: addresses, sizes, checksums, and where the option files expect the images.

DIV2K: the challenge's own server; sizes and SHA-256 as published by TensorFlow Datasets (``div2k/checksums.tsv``).
Benchmarks: the original pages are gone or serve results rather than images. The addresses point to a public mirror
(Hugging Face, ``eugenesiow``), pinned to the revision that added the files, so their content cannot change. An MD5 is
published for Urban100 only; the others are checked by the length that the server declares, the archive's own checksum
and the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dp_basicsr.errors import UserError
from dp_basicsr.utils.arguments import advise

_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
_MIRROR = "https://huggingface.co/datasets/eugenesiow"
_BY_HAND = (
    "By hand: the four benchmarks (Set5, Set14, B100, Urban100, each with a folder HR) are also in "
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
)


@dataclass(frozen=True)
class DatasetSource:
    """A data set to download."""

    url: str  # of the archive
    folder: str  # in the archive, with the images
    target: PurePosixPath  # of the images, relative to the root of the data sets
    images: int  # number of images
    size: int | None = None  # of the archive in bytes, if published
    checksum: str | None = None  # ``sha256:...`` or ``md5:...`` of the archive, if published
    # Options of `data extract`, which prepares training data from it; "" for a test set, whose LR images are made at
    # once.
    next_step: str = ""
    by_hand: str = ""  # what to do if the address does not answer

    @property
    def file_name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


def _div2k(archive: str, folder: str, size: int, sha256: str, next_step: str) -> DatasetSource:
    target, by_hand = PurePosixPath("DIV2K", folder), f"By hand: see {_DIV2K}/"
    return DatasetSource(f"{_DIV2K}/{archive}.zip", folder, target, 800, size, f"sha256:{sha256}", next_step, by_hand)


def _benchmark(name: str, images: int, revision: str, checksum: str | None = None) -> DatasetSource:
    url = f"{_MIRROR}/{name}/resolve/{revision}/data/{name}_HR.tar.gz"
    target = PurePosixPath(name, "GT")
    return DatasetSource(url, f"{name}_HR", target, images, checksum=checksum, by_hand=_BY_HAND)


_HR_SHA256 = "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"
_LR = {  # scale -> size and SHA-256
    2: (925_390_592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    3: (427_847_282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    4: (246_914_039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
}
SOURCES = {
    "div2k": _div2k("DIV2K_train_HR", "DIV2K_train_HR", 3_530_603_713, _HR_SHA256, "-i"),
    **{
        f"div2k_lr_x{scale}": _div2k(
            f"DIV2K_train_LR_bicubic_X{scale}",
            f"DIV2K_train_LR_bicubic/X{scale}",
            *archive,
            f"--scale {scale} --lr-input",
        )
        for scale, archive in _LR.items()
    },
    "set5": _benchmark("Set5", 5, "325646fe7cc8811e312562437885c5c018c74966"),
    "set14": _benchmark("Set14", 14, "5c964717e61b4931236a6dd5561750d11e5a7abb"),
    "bsd100": _benchmark("BSD100", 100, "600666edcba3b8386c367fcb03e72424a1ff9f86"),
    "urban100": _benchmark(
        "Urban100", 100, "57309de03db02ac12ee09ad6127e7b815c211328", "md5:65d9d84a34b72c6f7ca1e26a12df1e4c"
    ),
}


def download_dataset(
    name: str, root: Path, *, base_url: str | None = None, keep_archive: bool = False, scales: Sequence[int] = (4,)
) -> str:
    """Download the data set ``name``, a key of ``SOURCES``, to its place below ``root``; return what to print.

    A test set's LR images, ``LRbicx<scale>``, are made for ``scales``, unless their folders exist. ``base_url`` is a
    mirror that has the archive under the same file name; ``keep_archive`` keeps it in ``root``. What fails is a
    UserError, which explains the manual download.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}', expected one of {', '.join(SOURCES)}")
    # These take a while, and --help lists SOURCES.
    from dp_basicsr.data.downloads.archives import DamagedArchiveError, unpack_images
    from dp_basicsr.data.downloads.fetch import fetch
    from dp_basicsr.images.files import find_images

    source = SOURCES[name]
    target = root / source.target
    if target.exists():
        count = len(find_images(target))
        if count != source.images:
            raise UserError(f"{target} already exists with {count} images, expected {source.images}: move it away")
        lines = [f"{target}: already exists, {source.images} images"]
    else:
        lines = [f"{target}: {source.images} images"]
        was_there = (root / source.file_name).exists()
        url = f"{base_url.rstrip('/')}/{source.file_name}" if base_url else source.url
        way = f"{source.by_hand}; put the {source.images} images into {target}"
        try:
            archive = fetch(url, root / source.file_name, size=source.size, checksum=source.checksum)
        except UserError as error:
            raise UserError(f"{error}\n{way}") from error
        try:
            unpack_images(archive, source.folder, target, source.images)
        except DamagedArchiveError as error:
            if was_there:
                raise UserError(f"{error}: delete it and download it again") from error
            archive.unlink()
            raise UserError(f"{error}: it was deleted, run the same command again, or\n{way}") from error
        if not keep_archive:
            archive.unlink()
    if source.next_step:
        return "\n".join([*lines, f"next: {advise('data extract', [*source.next_step.split(), str(target)])}"])
    for scale in scales:
        lr = target.parent / f"LRbicx{scale}"
        if lr.exists():
            lines.append(f"{lr}: already exists")
            continue
        # These need OpenCV and lmdb, which the other downloads do without.
        from dp_basicsr.data.preparation.convert import make_lr
        from dp_basicsr.data.preparation.jobs import PrepJob

        (written,) = make_lr(target, lr, scale, PrepJob()).written
        lines.append(str(written))
    return "\n".join(lines)
