"""LPIPSLoss against the lpips package, and without the backbone's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.losses import LPIPSLoss

import lpips
import pytest
import torch
from torch import Tensor
from torchvision import models


@pytest.mark.parametrize(("net", "network"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_it_is_the_package_s_lpips(net: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The classifiers, a hundred million weights, are not used: no time to initialise them.
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda _: None)
    monkeypatch.setattr(torch.nn.init, "normal_", lambda weight, *_: weight)
    torch.manual_seed(0)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    backbone = models.get_model(network, weights=None).features
    slices = torch.nn.Sequential(*[layer for part in reference.net.children() for layer in part.children()])
    slices.load_state_dict(backbone[: len(slices)].state_dict())
    state = {f"features.{name}": value for name, value in backbone.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")

    x, gt = torch.rand(2, 2, 3, 64, 64)
    loss = LPIPSLoss(loss_weight=0.5, net=net, weights=str(tmp_path / "backbone.pth"))
    x.requires_grad_()
    value = loss(x, gt)
    expected = 0.5 * reference(x, gt, normalize=True).mean()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(one, x)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    # Images of NumPy's default type. In a model that trains it was random (PerceptualSimilarity#72).
    torch.testing.assert_close(torch.nn.ModuleList([loss]).train()[0](x.double(), gt.double()), value)


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda x: 255 * x, "up to 2.* divide them by 255"), (lambda x: (255 * x).byte(), "up to 2.* divide them by 255"),
     (lambda x: 2 * x - 1, r"from -.*: give \(x \+ 1\) / 2")],
)  # fmt: skip
def test_images_of_another_range_are_refused(change: Callable[[Tensor], Tensor], said: str) -> None:
    """RAE#25 (sibling): the loss of images in [0, 255] was a third of that in [0, 1]."""
    images = change(torch.rand(2, 1, 3, 32, 32))
    with pytest.raises(UserError, match=f"LPIPSLoss: expected images in .0, 1., got values {said}"):
        LPIPSLoss(weights="random")(*images)


def test_missing_weights_are_named() -> None:
    with pytest.raises(UserError, match="alexnet.*could not be downloaded.*data networks alexnet`"):
        LPIPSLoss()
    with pytest.raises(UserError, match="alex, vgg.*'squeeze'"):
        LPIPSLoss(net="squeeze")
