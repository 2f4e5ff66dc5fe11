"""Tiles that leave no seam, memory that runs out, precision that is not enough."""

from __future__ import annotations

from typing import Any

from dp_basicsr.checkpoint.opened_network import OpenedNetwork
from dp_basicsr.deploy.torch_engine import TorchEngine
from dp_basicsr.deploy.upscale_picture import resize
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.support.gpu import current_device, needs_gpus, skip_if_imitated
from tests.support.networks import make_network

pytestmark = pytest.mark.usefixtures("device")


def photograph(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    """(H, W, 3) with structure at several sizes."""
    rng = np.random.default_rng(3)
    image = sum(
        cv2.resize(rng.random((height // cell + 2, width // cell + 2, 3)), (width, height), interpolation=2)
        for cell in (2, 8, 32)
    )
    return (np.clip(image / 3, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def loaded(net: nn.Module, scale: int = 4, multiple: int = 1) -> OpenedNetwork:
    return OpenedNetwork("test", "Test", scale, "test", size=InputSize(multiple, fold=multiple), module=net)


def upscaler(net: nn.Module, scale: int = 4, multiple: int = 1, **options: Any) -> tuple[Upscaler, list[str]]:
    warned: list[str] = []
    device = str(current_device())
    engine = TorchEngine(loaded(net, scale, multiple), device, options.pop("precision", "fp32"), warned.append)
    return Upscaler(engine, warn=warned.append, **options), warned


def test_a_result_of_one_colour_is_told_once() -> None:
    """DiffBIR#144: black pictures of a network that was trained for a few steps."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.min() > 0.35:  # each tile has another corner
                return (x + x[..., :1, :1]) / 2
            return 0 * x + torch.tensor([0.9, 0.1, 0.1], device=x.device)[:, None, None]

    flat, warned = upscaler(Flat(), 1, tile=32, overlap=8)
    flat(np.full((40, 30, 3), 7, np.uint8))
    flat(np.random.default_rng(0).integers(0, 9, (40, 30, 3), np.uint8))
    assert not warned, "its image has one colour, or the noise of a night, which a network may take away"
    for _ in range(2):
        flat(photograph(40, 30))
    assert [text.partition(":")[0] for text in warned] == ["the result is almost one colour"]
    for _ in range(2):
        flat(photograph(40, 30) // 2 + 100)
    assert [text.partition(" ")[0] for text in warned] == ["the", "neighbouring"], "of each kind one"
    flat.overlap = 0
    flat(photograph(40, 30) // 2 + 100)
    assert warned[-1].startswith("tiles without an overlap"), "it is another reason"


def test_a_tile_is_never_larger_than_asked_for() -> None:
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape[2:]))
            return x

    result = upscaler(Watch(), 1, tile=32, overlap=8)[0](photograph(100, 70))
    assert result.shape == (100, 70, 3)
    assert max(seen) == (31, 29), "five and three tiles, no larger than needed to share 8 pixels"


def test_an_image_is_an_array_or_what_numpy_takes_for_one() -> None:
    """nunif#68: from Pillow and torch too. Other types had exceptions of the engines, or were noise without a word."""
    upscale, image = upscaler(nn.Identity(), 1)[0], photograph(9, 7)
    for same in (image, Image.fromarray(image), torch.from_numpy(image)):
        np.testing.assert_array_equal(upscale(same), image)
    for other in (image / 255, image.astype(int), image[..., 0], image[None], image.transpose(2, 0, 1), image[:0], "a"):
        with pytest.raises(UserError, match=r"expected \(H, W, 3\) RGB of uint8 or uint16, got .* of shape \("):
            upscale(other)


@pytest.mark.parametrize(("arch", "scale", "multiple"), [("RRDBNetDP", 4, 1), ("RRDBNet", 2, 2), ("MSRResNet", 3, 1)])
def test_tiled_equals_untiled_without_a_seam(arch: str, scale: int, multiple: int) -> None:
    """In 16 bits, which show what 8 would hide."""
    net, image = make_network(arch, scale), photograph(90, 75, np.uint16)
    whole = upscaler(net, scale, multiple, tile=0)[0](image).astype(np.int64)
    tiled = upscaler(net, scale, multiple, tile=64, overlap=24)[0](image).astype(np.int64)
    difference = np.abs(whole - tiled)
    print(f"{arch} x{scale}: tiled against untiled at most {difference.max() / 65535:.1e}")
    assert whole.std() > 3000
    assert difference.max() / 65535 < 1e-3
    hard = upscaler(net, scale, multiple, tile=64, overlap=0)[0](image).astype(np.int64)
    assert np.abs(whole - hard).max() > 20 * difference.max(), "without an overlap there must be a seam to see"


@pytest.mark.parametrize(("arch", "scale", "multiple"), [("RRDBNetDP", 4, 1), ("RRDBNet", 1, 4), ("MSRResNet", 2, 1)])
def test_tiny_and_odd_sizes(arch: str, scale: int, multiple: int) -> None:
    """Of images and tiles: upscayl/upscayl#1342, IceClear/StableSR#131, chaiNNer-org/chaiNNer#2461."""
    net = make_network(arch, scale, num_block=1)
    for size, tile in (((1, 1), 32), ((1, 7), 1000), ((3, 2), 1), ((5, 129), 32), ((20, 31), 7)):
        result = upscaler(net, scale, multiple, tile=tile)[0](photograph(*size))
        assert result.shape == (size[0] * scale, size[1] * scale, 3)
        assert result.dtype == np.uint8


class Greedy(nn.Module):
    """Enlarges by 2, but has memory for so many pixels only."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] > self.most:
            raise self.error
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(
    ("error", "tile"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 0),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: ..."), 128),
        (RuntimeError("MPS backend out of memory (MPS allocated: ...)"), None),
        (MemoryError(), None),
    ],
)
def test_out_of_memory_halves_the_tile_and_remembers(error: Exception, tile: int | None) -> None:
    image = photograph(150, 200)
    run, warned = upscaler(Greedy(50 * 50, error), 2, tile=tile)
    result = run(image)
    assert np.array_equal(result, image.repeat(2, 0).repeat(2, 1))
    assert run.tile <= 50
    assert warned
    assert all("trying again with tiles of" in message for message in warned)
    run(image)
    assert warned[-1].endswith(f"tiles of {run.tile} pixels")
    assert len(warned) == len(set(warned))


@needs_gpus(1, "CUDA out of memory")
def test_a_gpu_s_memory_that_runs_out_halves_the_tile() -> None:
    """A real lack of memory: one layer of the output is 200 MB, and the process may have 350 MB."""
    net, image, warned = make_network(num_feat=32), photograph(320, 320), []
    expected = Upscaler(TorchEngine(loaded(make_network(num_feat=32)), "cpu"), tile=128)(image).astype(int)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(350 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    try:
        run = Upscaler(TorchEngine(loaded(net), "cuda"), tile=0, warn=warned.append)
        result = run(image).astype(int)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert warned
    assert 0 < run.tile < 320
    assert np.abs(result - expected).max() <= 2


def test_out_of_memory_ends_where_tiles_cannot_get_smaller_and_other_errors_at_once() -> None:
    run, _ = upscaler(Greedy(10, MemoryError()), 2, tile=64)
    with pytest.raises(UserError, match="out of memory even with tiles of 32 pixels .MemoryError"):
        run(photograph(70, 70))
    run, warned = upscaler(Greedy(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), 2)
    with pytest.raises(RuntimeError, match="shapes"):
        run(photograph(70, 70))
    assert warned == []


class Fragile(nn.Module):
    """Overflows in fp16, as a network with large activations does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = torch.eye(3)[:, :, None, None] * 1e5

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) / 1e5


def test_fp16_that_overflows_is_computed_again_in_fp32(device: torch.device) -> None:
    skip_if_imitated(device, "autocast")
    image, net = photograph(40, 40), Fragile()
    run, warned = upscaler(net, 1, precision="fp16", tile=16)
    assert np.array_equal(run(image), image)
    assert warned == ["fp16 gives values that are not finite: continuing in fp32"]
    net.conv.weight.data *= float("inf")
    with pytest.raises(UserError, match="not finite, in fp32 too"):
        upscaler(net, 1)[0](photograph(8, 8))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 6), ("fp16", 2)])
def test_low_precision_is_close(precision: str, tolerance: int) -> None:
    net, image = make_network(), photograph(24, 24)
    exact = upscaler(net)[0](image).astype(int)
    run, warned = upscaler(net, precision=precision)
    assert np.abs(run(image) - exact).max() <= tolerance
    assert warned == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "expected one of fp32, bf16, fp16, got 'fp8'"),
        ({"tile": -1}, "at least 0, got tile -1"),
        ({"overlap": -1}, "at least 0, .* overlap -1"),
        ({"device": "quantum"}, "--device quantum: not there"),
        ({"device": "cuda:99"}, "--device cuda:99: not there"),
        # torch lists all its backends behind it.
        ({"device": "fpga:0"}, r"--device fpga:0: not there \(.{,99}'FPGA' backend\); expected auto"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    options = {"device": "cpu", "precision": "fp32", **options}
    with pytest.raises(UserError, match=message):
        Upscaler(TorchEngine(loaded(Fragile()), options.pop("device"), options.pop("precision")), **options)


def test_resize_keeps_means_and_types() -> None:
    image = photograph(60, 40, np.uint16)
    small, large = resize(image, 20, 10), resize(image, 90, 100)
    assert (small.shape, large.shape, small.dtype) == ((20, 10, 3), (90, 100, 3), np.uint16)
    assert abs(small.mean() - image.mean()) < 50
    assert abs(large.mean() - image.mean()) < 200
    assert resize(image, 60, 40) is image
