"""Addresses, sizes and checksums of the data sets.

DIV2K: the challenge's own server; sizes and SHA-256 as published by TensorFlow Datasets (``div2k/checksums.tsv``).
Benchmarks: the original pages are gone or serve results rather than images. The addresses point to a public mirror
(Hugging Face, ``eugenesiow``), pinned to the revision that added the files, so their content cannot change. An MD5 is
published for Urban100 only; the others are checked by the length that the server declares, the archive's own checksum
and the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
_MIRROR = "https://huggingface.co/datasets/eugenesiow"
_BY_HAND = (
    "By hand: the four benchmarks (Set5, Set14, B100, Urban100, each with a folder HR) are also in "
    "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
)


@dataclass(frozen=True)
class DatasetSource:
    """A data set to download.

    Attributes:
        url: URL of the archive.
        folder: Folder in the archive that contains the images.
        target: Destination of the images, relative to the root of the data sets.
        images: Number of images.
        size: Size of the archive in bytes, if published.
        checksum: ``sha256:...`` or ``md5:...`` of the archive, if published.
        next_step: Command that prepares the data from it, and its arguments.
        by_hand: What to do if the address does not answer.
    """

    url: str
    folder: str
    target: PurePosixPath
    images: int
    size: int | None = None
    checksum: str | None = None
    next_step: tuple[str, str] | None = None
    by_hand: str = ""

    @property
    def file_name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]


def _div2k_lr(scale: int, size: int, sha256: str) -> DatasetSource:
    folder = f"DIV2K_train_LR_bicubic/X{scale}"
    return DatasetSource(
        url=f"{_DIV2K}/DIV2K_train_LR_bicubic_X{scale}.zip",
        folder=folder,
        target=PurePosixPath("DIV2K", folder),
        images=800,
        size=size,
        checksum=f"sha256:{sha256}",
        next_step=("data extract", f"--scale {scale} --lr-input {{root}}/DIV2K/{folder}"),
        by_hand="By hand: see https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    )


def _benchmark(name: str, images: int, revision: str, checksum: str | None = None) -> DatasetSource:
    return DatasetSource(
        url=f"{_MIRROR}/{name}/resolve/{revision}/data/{name}_HR.tar.gz",
        folder=f"{name}_HR",
        target=PurePosixPath(name, "GT"),
        images=images,
        checksum=checksum,
        next_step=("data lr", f"-i {{root}}/{name}/GT -o {{root}}/{name}/LRbicx4 --scale 4"),
        by_hand=_BY_HAND,
    )


SOURCES: dict[str, DatasetSource] = {
    "div2k": DatasetSource(
        url=f"{_DIV2K}/DIV2K_train_HR.zip",
        folder="DIV2K_train_HR",
        target=PurePosixPath("DIV2K", "DIV2K_train_HR"),
        images=800,
        size=3_530_603_713,
        checksum="sha256:9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
        next_step=("data extract", "-i {root}/DIV2K/DIV2K_train_HR"),
        by_hand="By hand: see https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    ),
    "div2k_lr_x2": _div2k_lr(2, 925_390_592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    "div2k_lr_x3": _div2k_lr(3, 427_847_282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    "div2k_lr_x4": _div2k_lr(4, 246_914_039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    "set5": _benchmark("Set5", 5, "325646fe7cc8811e312562437885c5c018c74966"),
    "set14": _benchmark("Set14", 14, "5c964717e61b4931236a6dd5561750d11e5a7abb"),
    "bsd100": _benchmark("BSD100", 100, "600666edcba3b8386c367fcb03e72424a1ff9f86"),
    "urban100": _benchmark(
        "Urban100", 100, "57309de03db02ac12ee09ad6127e7b815c211328", "md5:65d9d84a34b72c6f7ca1e26a12df1e4c"
    ),
}
