"""DPLoss compared with a float64 computation of the equations, and the guarantees of its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dp_basicsr.losses  # noqa: F401
from dp_basicsr.archs.perceptual_arch import IMAGENET_MEAN, IMAGENET_STD, ResNetFeatures
from dp_basicsr.errors import UserError
from dp_basicsr.losses import DPLoss

import pytest
import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from tests.support.gpu import on_device
from tests.support.networks import images, small_loss

pytestmark = pytest.mark.usefixtures("device")

RELEASED: dict[str, Any] = {
    "resnet_layer_weights": {"layer1": 1, "layer2": 1, "layer3": 1},
    "resnet_use_input_norm": False,
    "resnet_batch_stats": True,
}
READINGS = {"paper": {}, "released": RELEASED}


class SecondComputation:
    """Eq. 4, 5, 8, 9 with torchvision's own networks, given the loss's weights, and plain tensor arithmetic."""

    def __init__(self, loss: DPLoss, released: bool) -> None:
        self.released = released
        self.vgg = on_device(models.vgg11(weights=None).features[:7].double())  # up to conv3_1, before its activation
        self.resnet = on_device(models.resnet18(weights=None).double())
        copy_by_order(loss.reference, self.vgg)
        stages = [self.resnet.layer1, self.resnet.layer2, self.resnet.layer3]
        unfolded = ResNetFeatures(["layer3"], "resnet18", "random", batch_stats=True)  # the same seeded weights
        copy_by_order(unfolded, nn.Sequential(self.resnet.conv1, self.resnet.bn1, *stages))
        self.resnet.train(released)

    def l_vgg(self, x: Tensor, gt: Tensor) -> Tensor:
        return (self.vgg(normalise(x)) - self.vgg(normalise(gt))).abs().mean()

    def l_resnet(self, x: Tensor, gt: Tensor) -> Tensor:
        if not self.released:
            x, gt = normalise(x), normalise(gt)
        distances = [(a - b).abs().mean() for a, b in zip(self.stages(x), self.stages(gt), strict=True)]
        return sum(distances) if self.released else distances[2]

    def stages(self, x: Tensor) -> list[Tensor]:
        net = self.resnet
        first = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        second = net.layer2(first)
        return [first, second, net.layer3(second)]


def normalise(x: Tensor) -> Tensor:
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def copy_by_order(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)


@pytest.mark.parametrize("reading", READINGS)
def test_value_and_gradient_equal_a_second_computation(reading: str) -> None:
    loss = small_loss(**READINGS[reading])
    second = SecondComputation(loss, reading == "released")
    x, gt = images()
    value, style = loss(x, gt)
    gradient = torch.autograd.grad(value, x)[0]

    l_vgg, l_resnet = second.l_vgg(x, gt), second.l_resnet(x, gt)
    w = l_vgg.item() / (0.5 * l_resnet.item() + 1e-8)
    expected = l_vgg + w * l_resnet

    assert style is None
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-9, atol=1e-15)
    assert loss.terms["l_vgg"].item() == pytest.approx(l_vgg.item(), rel=1e-12)
    assert loss.terms["l_resnet"].item() == pytest.approx(l_resnet.item(), rel=1e-12)
    assert loss.terms["weight"].item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("mu", [0.2, 0.5, 20.0])
def test_mu_divides(mu: float) -> None:
    """The dynamic weight makes the loss (1 + 1/mu) * L_VGG: a small mu means a heavy ResNet term."""
    loss = small_loss(mu=mu)
    value, _ = loss(*images())
    assert value.item() == pytest.approx((1 + 1 / mu) * loss.l_vgg.item(), rel=1e-6)


def test_static_weight_is_table_7_second_row() -> None:
    loss = small_loss(dynamic_weighting=False, static_weight=0.25)
    value, _ = loss(*images())
    assert value.item() == pytest.approx((loss.l_vgg + 0.25 * loss.l_resnet).item(), rel=1e-12)
    assert loss.weight.item() == 0.25


def test_without_resnet_is_table_7_first_row() -> None:
    loss = small_loss(resnet_layer_weights={})
    value, _ = loss(*images())
    assert value.item() == loss.l_vgg.item()
    assert loss.l_resnet is None


def test_weight_changes_the_size_of_the_resnet_gradient_not_its_direction() -> None:
    x, gt = images()
    heavy, light, none = (
        torch.autograd.grad(small_loss(**options)(x, gt)[0], x)[0]
        for options in ({"mu": 0.1}, {"mu": 10.0}, {"resnet_layer_weights": {}})
    )
    torch.testing.assert_close((heavy - none) / 100, light - none, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("reading", READINGS)
def test_identical_images_give_zero_and_finite_gradients(reading: str) -> None:
    x, _ = images()
    loss = small_loss(**READINGS[reading])
    value, _ = loss(x, x.detach().clone())
    value.backward()
    assert value.item() == 0
    assert x.grad.abs().max().item() == 0


def test_layer_weights_and_criterion() -> None:
    x, gt = images()
    one = small_loss(vgg_layer_weights={"conv1_1": 1}, resnet_layer_weights={}, criterion="l2")(x, gt)[0]
    other = small_loss(vgg_layer_weights={"conv3_1": 1}, resnet_layer_weights={}, criterion="l2")(x, gt)[0]
    both = small_loss(vgg_layer_weights={"conv1_1": 0.5, "conv3_1": 2}, resnet_layer_weights={}, criterion="l2")
    assert both(x, gt)[0].item() == pytest.approx((0.5 * one + 2 * other).item(), rel=1e-12)
    loss = small_loss(vgg_layer_weights={"conv1_1": 1}, resnet_layer_weights={}, criterion="l2")
    features = loss.reference.features
    assert one.item() == pytest.approx(F.mse_loss(features(x)["conv1_1"], features(gt)["conv1_1"]).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("criterion", "distance"),
    [("charbonnier", lambda d: torch.sqrt(d**2 + 1e-12).mean()), ("fro", lambda d: torch.norm(d, p="fro"))],
)
def test_other_criteria_are_basicsr_s(criterion: Any, distance: Callable[[Tensor], Tensor]) -> None:
    x, gt = images()
    loss = small_loss(vgg_layer_weights={"conv1_1": 1}, resnet_layer_weights={}, criterion=criterion)
    features = loss.reference.features
    expected = distance(features(x)["conv1_1"] - features(gt)["conv1_1"])
    assert loss(x, gt)[0].item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward(x, x.detach().clone())
    assert x.grad.isfinite().all()


def test_a_third_network_is_a_further_weighted_term() -> None:
    """Eq. 6 in general, from an option file: L_VGG + w_1 L_1 + w_2 L_2, each w_i with its own mu."""
    extra = {"network": "resnet34", "layer_weights": {"layer2": 1}, "weights": "random", "mu": 2.0}
    loss = small_loss(extra_terms=[extra])
    value, _ = loss(*images())
    assert set(loss.terms) == {"l_vgg", "l_resnet", "weight", "l_resnet34", "weight_resnet34"}
    assert value.item() == pytest.approx((1 + 1 / 0.5 + 1 / 2.0) * loss.l_vgg.item(), rel=1e-6)
    with pytest.raises(UserError, match="resnet34.*already used"):
        small_loss(extra_terms=[extra, extra])


def test_range_norm_takes_images_in_minus_one_to_one() -> None:
    x, gt = images()
    expected = small_loss()(x, gt)[0]
    assert small_loss(range_norm=True)(2 * x - 1, 2 * gt - 1)[0].item() == pytest.approx(expected.item(), rel=1e-9)


def test_loss_weight_scales_the_value_but_not_the_terms() -> None:
    x, gt = images()
    plain, scaled = small_loss(), small_loss(loss_weight=3.0)
    assert scaled(x, gt)[0].item() == pytest.approx(3 * plain(x, gt)[0].item(), rel=1e-12)
    assert scaled.l_vgg == plain.l_vgg


@pytest.mark.parametrize("batch_stats", [False, True])
def test_frozen_networks_are_unchanged(batch_stats: bool) -> None:
    loss = small_loss(resnet_batch_stats=batch_stats)
    x, gt = images()
    first = loss.train()(x, gt)[0]  # and batch-norm is folded
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    first.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.reference.features.modules())
    assert not any(module.training for module in loss.weighted["resnet"].features.modules())
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    assert torch.equal(first, loss(x, gt)[0])


def test_no_graph_for_the_original() -> None:
    x, gt = images()
    gt.requires_grad_()
    small_loss()(x, gt)[0].backward()
    assert gt.grad is None


def test_terms_are_detached_scalars() -> None:
    loss = small_loss()
    assert loss.l_vgg is None
    assert loss.weight is None
    loss(*images())
    assert {name: (value.dim(), value.requires_grad) for name, value in loss.terms.items()} == {
        "l_vgg": (0, False),
        "l_resnet": (0, False),
        "weight": (0, False),
    }


@pytest.mark.parametrize("reading", READINGS)
def test_float32_under_autocast(reading: str, device: torch.device) -> None:
    loss = small_loss(**READINGS[reading]).float()
    x, gt = (image.float() for image in images())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value, _ = loss(x, gt)
    assert {value.dtype, *(term.dtype for term in loss.terms.values())} == {torch.float32}
    assert value.item() == pytest.approx(loss(x, gt)[0].item(), rel=0.05)


@pytest.mark.parametrize(
    ("x", "gt"), [((2, 1, 32, 32), (2, 1, 32, 32)), ((2, 3, 32, 32), (2, 3, 32, 16)), ((3, 32, 32), (3, 32, 32))]
)
def test_wrong_shapes_name_both(x: tuple[int, ...], gt: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="N, 3, H, W") as raised:
        small_loss()(torch.rand(x), torch.rand(gt))
    assert str(x) in str(raised.value)
    assert str(gt) in str(raised.value)


def test_an_image_too_small_for_the_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 pixels"):
        small_loss()(torch.rand(1, 3, 2, 64), torch.rand(1, 3, 2, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0}, "mu.*> 0.*got 0"),
        ({"mu": float("nan")}, "mu"),
        ({"eps": -1e-8}, "eps"),
        ({"criterion": "l3"}, "l1, l2, charbonnier, fro.*l3"),
        ({"vgg_type": "vgg12"}, "vgg19.*vgg12"),
        ({"resnet_type": "vit"}, "resnet50.*vit"),
        ({"vgg_layer_weights": {"conv9_9": 1}}, "conv3_1.*conv9_9"),
        ({"vgg_layer_weights": {}}, "at least one layer"),
        ({"resnet_layer_weights": {"conv4_6": 1}}, "layer3.*conv4_6"),
        ({"extra_terms": [{"network": "alexnot", "layer_weights": {"a": 1}}]}, "resnet50.*alexnot"),
        ({"extra_terms": [{"network": "alexnet", "layer_weights": {"features.99": 1}}]}, r"features\.12.*features\.99"),
    ],
)
def test_wrong_options_name_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_loss(**options)


def test_the_interface_and_its_defaults() -> None:
    """Other code uses these names, and the paper's reading is the default."""
    defaults = {name: p.default for name, p in inspect.signature(DPLoss).parameters.items()}
    assert defaults.pop("extra_terms") == ()
    assert defaults == {
        "vgg_layer_weights": {"conv5_4": 1},
        "resnet_layer_weights": {"layer3": 1},
        "mu": 0.5,
        "eps": 1e-8,
        "dynamic_weighting": True,
        "static_weight": 1.0,
        "max_weight": None,
        "sync_weight": True,
        "loss_weight": 1.0,
        "criterion": "l1",
        "vgg_type": "vgg19",
        "resnet_type": "resnet50",
        "use_input_norm": True,
        "resnet_use_input_norm": True,
        "resnet_batch_stats": False,
        "range_norm": False,
        "vgg_weights": "imagenet",
        "resnet_weights": "imagenet",
        "reference": "vgg",
        "input_channels": None,
        "log_gradient_shares": False,
    }


def test_basicsr_builds_it() -> None:
    assert "DPLoss" in LOSS_REGISTRY
    built = build_loss({"type": "DPLoss", "vgg_weights": "random", "resnet_weights": "random"})
    assert isinstance(built, DPLoss)
    assert list(built.reference.features.parts)[-1] == "conv5_4"
    assert list(built.weighted["resnet"].features.parts)[-1] == "layer3"


@pytest.mark.parametrize(
    "options",
    [{}, RELEASED, {"resnet_layer_weights": {}}, {"loss_weight": 0.5, "dynamic_weighting": False},
     {"extra_terms": [{"network": "vgg11", "name": "b", "layer_weights": {"relu2_1": 1}, "weights": "random"}]}],
)  # fmt: skip
def test_backward_adds_the_gradient_of_forward(options: dict[str, Any]) -> None:
    """One network at a time, with w applied to the gradient: equal up to rounding, added to the image's gradient."""
    loss = small_loss(**options)
    x, gt = images()
    expected, _ = loss(x, gt)
    gradient = torch.autograd.grad(expected * 0.25, x)[0]
    terms = dict(loss.terms)
    x.grad = torch.ones_like(x)
    value = loss.backward(x, gt, lambda value: value * 0.25)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(x.grad - 1, gradient, rtol=1e-9, atol=1e-14)
    assert loss.terms == terms


def test_the_weight_can_be_capped() -> None:
    x, gt = images()
    free, capped = small_loss(), small_loss(max_weight=0.125)
    free(x, gt)
    value, _ = capped(x, gt)
    assert free.weight > 0.125
    assert capped.weight == 0.125
    assert value.item() == pytest.approx((capped.l_vgg + 0.125 * capped.l_resnet).item(), rel=1e-12)


RANGES = {"[0, 1]": (0.0, 1.0), "[-1, 1]": (-1.0, 1.0), "[0, 255]": (0.0, 255.0), "[-0.02, 1.02]": (-0.02, 1.02)}


@pytest.mark.parametrize("range_norm", [False, True])
@pytest.mark.parametrize("given", RANGES)
def test_images_in_another_range_are_refused_in_the_first_call(given: str, range_norm: bool) -> None:
    low, high = RANGES[given]
    x, gt = (low + (high - low) * image.detach() for image in images())
    gt[0, 0, 0, :2] = torch.tensor([low, high])
    loss = small_loss(range_norm=range_norm)
    if given == "[0, 255]":
        with pytest.raises(UserError, match=r"got values up to 255: divide them by 255"):
            loss(x, gt)
    elif given == "[-1, 1]" and not range_norm:
        with pytest.raises(UserError, match=r"expected images in \[0, 1\], got values from -1: set range_norm"):
            loss(x, gt)
    else:
        loss(x, gt)
        loss(255 * x, 255 * gt)  # not checked again, because that would wait for the device


def test_print_shows_networks_layers_mu_and_weight() -> None:
    terms = [{"type": "CharbonnierLoss", "mu": 2.0, "max_weight": 3.0}]
    text = str(small_loss(resnet_layer_weights={"layer1": 1, "layer2": 0.5}, extra_terms=terms, loss_weight=0.25))
    assert text.splitlines() == [
        "DPLoss(",
        "  loss_weight=0.25",
        "  (vgg): l1 of vgg11: 1 conv3_1",
        "  (resnet): l1 of resnet18: 1 layer1, 0.5 layer2; w = vgg / (0.5 * resnet + 1e-08)",
        "  (CharbonnierLoss): CharbonnierLoss; w = vgg / (2 * CharbonnierLoss + 1e-08), at most 3",
        ")",
    ]
