"""Run by test_validation.py under torchrun: the same validation on one rank and split over the ranks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dp_basicsr.distributed.collectives import agree_on, all_gather
from dp_basicsr.errors import UserError

import pytest
import torch
from torch import Tensor, distributed, nn

from tests.support.validation import SIZES, files, make_loader, make_model


class Caching(nn.Module):
    """Keeps what depends on the size of the image, which differs from process to process."""

    def forward(self, image: Tensor) -> Tensor:
        self.register_buffer("zeros", torch.zeros_like(image), persistent=False)
        return image + self.zeros


def main() -> None:
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    shared = Path(agree_on(tempfile.mkdtemp()))
    loader = make_loader(Path(tempfile.mkdtemp()))
    alone = make_model(shared / f"alone{rank}")
    split = make_model(shared / "split", dist=True, rank=rank, world_size=world_size)
    for iteration in (1, 2):
        assert alone.validation(loader, iteration, None, True)
        assert split.validation(loader, iteration, None, True)
        assert split.validator.results == alone.validator.results, (split.validator.results, alone.validator.results)
    # pytorch-image-models#235: each process has the statistics of its own images, and rank 0's are saved.
    for mean, validator in (0.0, alone.validator), (0.1 * rank, split.validator):
        norm = nn.BatchNorm2d(3)
        nn.init.constant_(norm.running_mean, mean)
        net = nn.Sequential(norm, Caching(), nn.Upsample(scale_factor=4))
        assert all(validator.validate(net, loader, iteration, None) for iteration in (2, 3))
    assert split.validator.results == alone.validator.results, (split.validator.results, alone.validator.results)
    assert all_gather(split.validator.best) == [alone.validator.best] * world_size
    written = files(shared / "split/visualization")
    assert len(written) == 2 * len(SIZES)
    assert written == files(shared / f"alone{rank}/visualization")
    assert split.net_g.training

    (shared / "split/visualization/image3/image3_3.png.partial").mkdir(exist_ok=True)  # rank 1's
    with pytest.raises(UserError, match="image3"):
        split.validation(loader, 3, None, True)
    split.validator.interrupted = lambda: rank == 1
    assert split.validation(loader, 4, None) is False
    assert split.validator.best == alone.validator.best
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
