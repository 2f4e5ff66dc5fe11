"""The forward passes on fake CUDA tensors: no card is needed, and a tensor left on the CPU is an error.

Nothing is computed: this shows where tensors are, not what is in them.
"""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.losses import DPLoss
from dp_basicsr.models import ESRGANDPModel, SRGANDPModel
from dp_basicsr.models.step_guard import not_finite

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.conftest import SMALL_DP_LOSS, model_options

SMALL = {name: value for name, value in SMALL_DP_LOSS.items() if name != "type"}


def fake(*shape: int) -> torch.Tensor:
    return torch.rand(shape, device="cuda")


@pytest.mark.parametrize("released", [False, True])
def test_loss(released: bool) -> None:
    loss = DPLoss(**SMALL, resnet_batch_stats=released, resnet_use_input_norm=not released)
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss.to("cuda")
        value, _ = loss(fake(2, 3, 32, 32).requires_grad_(), fake(2, 3, 32, 32))
        assert value.requires_grad
        assert {value.device.type, *(term.device.type for term in loss.terms.values())} == {"cuda"}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_generator(scale: int) -> None:
    net = RRDBNetDP(scale=scale, num_feat=8, num_block=1, num_grow_ch=4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert net.to("cuda")(fake(1, 3, 8, 8)).device.type == "cuda"


@pytest.mark.parametrize("model_class", [ESRGANDPModel, SRGANDPModel])
def test_losses_of_a_step(model_class: type[SRGANDPModel], tmp_path: Path) -> None:
    model = model_class(model_options(model_class.__name__, tmp_path))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for net in (model.net_g, model.net_d, model.cri_pix, model.cri_perceptual, model.cri_gan):
            net.to("cuda")
        gt = fake(2, 3, 128, 128)
        sr = model.net_g(fake(2, 3, 32, 32))
        real, fake_logits = model.net_d(gt), model.net_d(sr)
        gan = [model.generator_gan_loss(real.detach(), fake_logits), *model.discriminator_losses(real, fake_logits)]
        losses = [model.cri_pix(sr, gt), model.cri_perceptual(sr, gt)[0], *gan]
        flag = not_finite([torch.ones_like(sr)], dict(enumerate(losses)))  # a backward pass needs a real device
        assert {tensor.device.type for tensor in (*losses, flag)} == {"cuda"}


def test_a_tensor_on_the_wrong_device_is_caught() -> None:
    """The test above can fail: a loss left on the CPU does not take CUDA images."""
    loss = DPLoss(**SMALL)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="device"):
        loss(fake(2, 3, 32, 32), fake(2, 3, 32, 32))
