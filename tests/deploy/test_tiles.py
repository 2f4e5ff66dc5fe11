"""Tiles against the whole image, for every architecture that spandrel opens, with random and enlarged weights."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from dp_basicsr.utils.input_size import InputSize, run_padded
from dp_basicsr.utils.network_size import with_step
from dp_basicsr.utils.tiles import blend_tiles, grid, spans

import numpy as np
import pytest
import torch
from spandrel import MAIN_REGISTRY
from torch import Tensor

from tests.support.fuzz import SEED, draws

WINDOWED = {"depths": [2], "embed_dim": 12, "num_heads": [2], "window_size": 8, "mlp_ratio": 2, "img_size": 16}
DEEP = {"depth": [2, 2], "num_heads": [2, 2], "drop_path_rate": 0.0}
DIRECT = {"upsampler": "pixelshuffledirect"}
U_NET = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}

# spandrel's module -> class and arguments of a small one. "*": its result depends on the whole image (global pooling or
# attention), so equality is not possible, or it is not tried on parts: IPT cuts images itself, Uformer is large.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ATD*": ("ATD", {**WINDOWED, "category_size": 16, "num_tokens": 8, "upscale": 2, **DIRECT}),
    "CRAFT*": ("CRAFT", {"embed_dim": 12, "depths": [2], "num_heads": [2], "upscale": 2}),
    "Compact": ("Compact", {"num_feat": 8, "num_conv": 2, "upscale": 2}),
    "DAT*": ("DAT", {**DEEP, "embed_dim": 16, "split_size": [8, 16], "upscale": 2}),
    "DCTLSA*": ("DCTLSA", {"nf": 20, "upscale": 2}),
    "DITN": ("DITN", {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "DRCT": ("DRCT", {**WINDOWED, "upscale": 2, "upsampler": "pixelshuffle", "gc": 8}),
    "DRUNet": ("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 8, 8, 8], "nb": 2}),
    "DnCNN": ("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 8, "act_mode": "R"}),
    "ESRGAN": ("ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 2}),
    "FBCNN*": ("FBCNN", {"nc": [8, 8, 8, 512], "nb": 2}),
    "FDAT*": ("FDAT", {"embed_dim": 16, "num_groups": 1, "depth_per_group": 2, "scale": 2, "mid_dim": 8}),
    "FFTformer": ("FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    "GRL": ("GRL", {"embed_dim": 16, "depths": [2, 2], "num_heads_window": [1, 1], "num_heads_stripe": [1, 1],
                    "window_size": 8, "stripe_size": [8, 8], "upscale": 2, **DIRECT, "anchor_window_down_factor": 2}),
    "HAT*": ("HAT", {**WINDOWED, "compress_ratio": 3, "squeeze_factor": 4, "upscale": 2, "upsampler": "pixelshuffle"}),
    "IPT*": ("IPT", {"patch_size": 12, "patch_dim": 3, "n_feats": 8, "num_heads": 2, "num_layers": 1, "scale": [2]}),
    "KBNet*": ("KBNet.KBNet_s", U_NET),
    "MoESR": ("MoESR", {"dim": 8, "n_blocks": 1, "n_block": 1, "scale": 2, "upsample_dim": 8}),
    "MoSR": ("MoSR", {"n_block": 1, "dim": 8, "upscale": 2}),
    "NAFNet*": ("NAFNet", U_NET),
    "OmniSR*": ("OmniSR", {"num_feat": 8, "block_num": 1, "res_num": 1, "up_scale": 2}),
    "PLKSR": ("PLKSR", {"dim": 8, "n_blocks": 2, "upscaling_factor": 2}),
    "RealPLKSR*": ("PLKSR.RealPLKSR", {"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "RCAN*": ("RCAN", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 4, "scale": 2}),
    "RGT*": ("RGT", {**DEEP, "embed_dim": 16, "split_size": [8, 16], "upscale": 2}),
    "RealCUGAN*": ("RealCUGAN.UpCunet2x", {}),
    "RetinexFormer*": ("RetinexFormer", {"n_feat": 8, "stage": 1}),
    "SAFMN": ("SAFMN", {"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "SCUNet": ("SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, "norm": False}),
    "SeemoRe*": ("SeemoRe", {"scale": 2, "num_experts": 3, "num_layers": 1, "embedding_dim": 8}),
    "SwiftSRGAN": ("SwiftSRGAN", {"num_channels": 8, "num_blocks": 1, "upscale_factor": 2}),
    "Swin2SR": ("Swin2SR", {**WINDOWED, "upsampler": "pixelshuffledirect"}),
    "SwinIR": ("SwinIR", {**WINDOWED, "upscale": 2, "upsampler": "pixelshuffledirect"}),
    "Uformer*": ("Uformer", {"img_size": 128, "embed_dim": 8, "depths": [1] * 9}),
}  # fmt: skip


def drawn(names: list[str]) -> Iterator[tuple[str, int]]:
    """Six of the names with seeds; under ``make fuzz`` all of them again and again."""
    random.Random(SEED).shuffle(names)
    for number, _ in enumerate(draws(6)):
        seed = SEED + number // len(names)
        print(f"{names[number % len(names)]} with FUZZ_SEED={seed}")
        yield names[number % len(names)], seed


def opened(name: str, seed: int) -> tuple[Callable[[Tensor], Tensor], InputSize, int, int]:
    """A small network as spandrel opens it, its sizes, scale and channels. With odd seeds its weights are doubled."""
    kind, arguments = SMALL[name]
    module, _, attribute = kind.partition(".")
    torch.manual_seed(seed)
    net = getattr(importlib.import_module(f"spandrel.architectures.{module}"), attribute or module)(**arguments).eval()
    with torch.no_grad():
        for key, value in net.named_parameters():
            if any(part in key for part in ("beta", "gamma", "layer_scale")):
                value.fill_(0.5)  # zero at first: the blocks would do nothing
            elif seed % 2 and value.ndim > 1 and "logit_scale" not in key:
                value *= 2
    loaded = MAIN_REGISTRY.load({key: value.clone() for key, value in net.state_dict().items()})
    needs = loaded.size_requirements
    size = with_step(
        loaded.model, InputSize(needs.multiple_of, max(needs.minimum, 1), needs.square), loaded.input_channels
    )
    return lambda image: loaded(image), size, loaded.scale, loaded.input_channels  # type: ignore[operator]


def test_a_part_that_starts_at_a_step_is_computed_as_in_the_whole_image() -> None:
    for name, seed in drawn([name for name in SMALL if not name.endswith("*")]):
        run, size, scale, channels = opened(name, seed)
        side, margin = size.step * 2 if size.step > 8 else 16, 48 + 2 * size.step
        start = -(-margin // size.step) | 1  # odd: not by chance a multiple of more
        start *= size.step
        length = -(-(2 * margin + 16) // size.step) * size.step
        image = torch.rand(1, channels, side, start + length + margin)
        whole, part = run(image), run(image[..., start : start + length])
        middle = slice(margin * scale, (margin + 16) * scale)
        difference = (whole[..., start * scale :][..., middle] - part[..., middle]).abs().max() * 255
        assert difference < 1, f"{name}: a part differs by {difference:.1f} of 255, steps of {size.step}"


def tiled(run: Any, image: Tensor, tile: int, overlap: int, size: InputSize, scale: int) -> tuple[np.ndarray, str]:
    """The result of an image (1, C, H, W) in tiles, and why it may not be that of the whole image."""
    seams = [""]

    def run_tile(rows: slice, columns: slice) -> np.ndarray:
        return run_padded(run, image[..., rows, columns], size, scale)[0].numpy()

    bands = blend_tiles(run_tile, image.shape[2], image.shape[3], scale, tile, overlap, size, None, seams.append)
    return np.concatenate(list(bands), axis=1), seams[-1]


def test_tiles_give_the_whole_image_or_say_that_they_do_not() -> None:
    for name, seed in drawn(list(SMALL)):
        run, size, scale, channels = opened(name, seed)
        rng = random.Random(seed)
        step = max(size.step, 8)
        height, width = rng.randrange(16, 3 * step), rng.randrange(4 * step, 6 * step)
        image = torch.from_numpy(np.random.default_rng(seed).random((1, channels, height, width), np.float32))
        tile, overlap = rng.randrange(1, 4 * step), rng.randrange(64)
        result, reason = tiled(run, image, tile, overlap, size, scale)
        whole = run_padded(run, image, size, scale)[0].numpy()
        assert result.shape == whole.shape
        difference = np.abs(result - whole).max() * 255
        print(f"  {height} x {width}, tile {tile}, overlap {overlap}: {difference:.2f} of 255, {reason!r}")
        assert difference <= 1 or reason, f"{name}: {difference:.1f} of 255 without a word"


@pytest.mark.parametrize("step", [1, 2, 8])
def test_a_grid_covers_every_pixel_once_and_starts_at_steps(step: int) -> None:
    rng = random.Random(step)
    for _ in range(60):
        length, tile, overlap = rng.randrange(1, 200), rng.randrange(1, 80), rng.randrange(40)
        minimum = rng.choice([1, rng.randrange(1, 80)])
        tiles, shared = spans(length, max(tile, minimum), overlap, step, minimum)
        assert tiles[0].start == 0
        assert tiles[-1].stop == length
        assert all(span.start % step == 0 for span in tiles)
        assert tiles[0].stop >= min(minimum, length) // step * step
        assert all(before.stop - after.start >= shared for before, after in pairwise(tiles))
        column = torch.rand(1, 1, length, 1)
        result, _ = tiled(lambda image: image, column, tile, overlap, InputSize(step=step), 1)
        assert np.array_equal(result, column[0].numpy())


def test_a_model_of_one_size_that_depends_on_all_of_it_is_named() -> None:
    """zhengchen1999/DAT#7: its ONNX file takes 192 x 192 pixels, to which a smaller image is padded."""
    size = InputSize(minimum=8, maximum=8, is_global=True)
    _, told = tiled(lambda image: image, torch.zeros(1, 3, 5, 5), 8, 0, size, 1)
    assert (
        told == "each pixel of the result depends on all 8 x 8 pixels that the model takes: its .pth or "
        ".safetensors gives the whole image's"
    )
    assert not tiled(lambda image: image, torch.zeros(1, 3, 8, 8), 8, 0, size, 1)[1]
    # DRCT's, too: a network that sees as far as its padding.
    size = InputSize(minimum=8, maximum=8)
    for height, more, side in ((5, 0, "8 x 8"), (20, 0, "8 x 8"), (5, 4, "8 x 12")):
        told = tiled(lambda image: image, torch.zeros(1, 3, height, 5), 8, 0, replace(size, taller=more), 1)[1]
        assert told.startswith(f"the model takes {side} pixels alone: a smaller image is padded")
    assert not tiled(lambda image: image, torch.zeros(1, 3, 8, 20), 8, 4, size, 1)[1]


@pytest.mark.parametrize(("tile", "shared"), [(17, 8), (48, 20)])
def test_the_overlap_that_is_told_is_that_of_the_tiles(tile: int, shared: int) -> None:
    """Found with waifu2x-ncnn-vulkan#10: that of small tiles is half of them."""
    for size in (InputSize(), InputSize(step=2, fold=2)):
        _, told = tiled(lambda part: part.cumsum(3) / 60, torch.rand(1, 3, 15, 150), tile * size.fold, 20, size, 1)
        assert told.endswith(f"their overlap of {shared} pixels"), told


@pytest.mark.parametrize("size", [InputSize(), InputSize(2), InputSize(step=16), InputSize(4, minimum=64)])
def test_an_image_that_fits_into_one_tile_is_not_cut(size: InputSize) -> None:
    for height, width in [(1, 1), (33, 47), (47, 33), (65, 100), (383, 384)]:
        for tile in (0, 384):
            (rows, _), (columns, _) = grid(height, width, tile, 32, size)
            assert [*rows, *columns] == [slice(0, height), slice(0, width)]
