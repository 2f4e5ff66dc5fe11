"""What runs a network: the interface that the upscaler uses. This module does not import torch."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.choices import Precision
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import pad
from dp_basicsr.utils.pool import available_cpus
from dp_basicsr.utils.tiles import Floats

import numpy as np

# On CPUs: larger tiles compute less twice; this one takes 1.4 GB (64 features, x4). docs/inference.md has the figures.
CPU_TILE = 384
_MISFIT = "expected as many colours out, RGB or gray, and a whole multiple of the size, got {} for {}: export it anew"


def try_room(network: OpenedNetwork, folder: str) -> None:
    """Raise OSError on a disk without room for the weights and what a converter makes of them."""
    # On a full disk each converter has an error of its own; pnnx and torch's tracer abort, or leave a part.
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as draft:
            room = 1 + 4 * sum(value.nbytes for value in network.module.state_dict().values())
            try:
                os.posix_fallocate(draft.fileno(), 0, room)
            except OSError as error:
                # Some file systems, as ZFS, reserve nothing.
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise


class Engine(ABC):
    """Runs one network on arrays.

    Args:
        network: What it runs; None for what the file itself tells.
        device: See ``open_engine``.
        precision: Arithmetic within the network. If fp16 or bf16 gives values that are not finite, the input is
            computed again in fp32, and so are all after it.
        warn: Called with a warning when the precision changes.
        path: The file that it runs, if it runs files.

    Raises:
        UserError: There is no such device or precision, or the file cannot be run.
    """

    tile = CPU_TILE  # pixels of a tile that suit the device
    scratch: Any = None  # a TemporaryDirectory of the file that it runs
    open_next: Callable[[], Engine] | None = None  # opens another engine for the network, if this one fails

    def __init__(
        self,
        network: OpenedNetwork | None,
        device: str = "cpu",
        precision: Precision = "fp32",
        warn: Callable[[str], None] = warnings.warn,
        path: Path = Path(),
    ) -> None:
        self.precision = precision
        self.warn = warn
        self.path = path
        self.asked, self.process = device, os.getpid()
        self.network, by = self.load(network, device)
        self.title = f"{self.network.title}, {by}"  # file, network, engine, device and precision, for people

    @abstractmethod
    def load(self, network: OpenedNetwork | None, device: str) -> tuple[OpenedNetwork, str]:
        """Get ready to run; return what it runs, and what runs it."""

    @abstractmethod
    def run(self, images: Floats) -> Floats:
        """Run the network on (N, channels, h, w), a size that it takes."""

    @staticmethod
    def write(network: OpenedNetwork, path: Path, facts: dict[str, str], half: bool = False) -> None:
        """Write a network in torch for any batch, height and width; ``facts`` and ``half`` as for an export."""
        raise NotImplementedError

    @classmethod
    def supports(cls, precision: str) -> bool:
        """Return whether it computes in a precision on this CPU."""
        return precision == "fp32"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.network, self.asked, self.precision, self.warn, self.path)

    def after_fork(self) -> None:
        """Get ready in a forked process, which has the engine's memory and not its threads: it would wait for them."""
        self.of_parent = vars(self).copy()  # to free it would wait, too
        self.load(self.network, self.asked)

    def use_fp32(self) -> None:
        """Compute in fp32 from now on."""
        self.precision = "fp32"

    def free_memory(self) -> None:  # noqa: B027  (most engines have nothing to do)
        """Return cached memory to the device."""

    def __call__(self, image: Floats) -> Floats:
        """Upscale (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w), not clipped; refuse what is not finite."""
        if os.getpid() != self.process:
            self.process = os.getpid()
            self.after_fork()
        height, width = (side * self.network.scale for side in image.shape[2:])
        is_gray = self.network.channels == 1
        # A network for gray gets the three colours as three images.
        images = pad(image.transpose(1, 0, 2, 3) if is_gray else image, self.network.size)
        result = self.run(images)
        # A value beyond fp16's range becomes infinite; this says nothing against the weights yet.
        if self.precision != "fp32" and not np.isfinite(result).all():
            self.warn(f"{self.precision} gives values that are not finite: continuing in fp32")
            self.use_fp32()
            result = self.run(images)
        if not np.isfinite(result).all():
            at_fault = "" if self.open_next else ": its weights are not usable for this image"
            raise UserError(f"the network gives values that are not finite, in fp32 too{at_fault}")
        if result.shape != (*images.shape[:2], *(side * self.network.scale for side in images.shape[2:])):
            raise UserError(f"model {self.network.file}: {_MISFIT.format(result.shape, images.shape)}")
        result = result[:, :, :height, :width]
        return result.transpose(1, 0, 2, 3) if is_gray else result

    def probe(self, channels: int, height: int, width: int) -> int:
        """Return the scale, which a run of the network on a black image shows.

        A result that is no image of as many channels, of a whole multiple of the size, is a ValueError.
        """
        shape = self.run(np.zeros((1, channels, height, width), np.float32)).shape
        scale = shape[-1] // width
        if shape != (1, channels, scale * height, scale * width) or scale < 1:
            raise ValueError(_MISFIT.format(shape, (1, channels, height, width)))
        return int(scale)


def limit_threads() -> int:
    """Return how many threads an engine may start, or 0 for its own choice.

    ``OMP_NUM_THREADS`` decides, or the CPUs that this process may use where they are not all of the machine's: engines
    count those of the machine.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return int(os.environ["OMP_NUM_THREADS"])
    allowed = available_cpus()
    return allowed if allowed != os.cpu_count() else 0
