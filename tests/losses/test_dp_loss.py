"""DPLoss compared with a float64 computation of the equations, and the guarantees of its docstring."""

from __future__ import annotations

import copy
import inspect
import io
from functools import cache
from typing import Any
from unittest.mock import Mock

import dp_basicsr.losses  # noqa: F401
from dp_basicsr.archs.perceptual_arch import IMAGENET_MEAN, IMAGENET_STD, ResNetFeatures
from dp_basicsr.errors import UserError
from dp_basicsr.losses import DPLoss, DualPerceptualLoss

import pytest
import torch
from basicsr.losses import build_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from tests.support.gpu import current_device, on_device, skip_if_imitated
from tests.support.networks import images, small_loss
from tests.support.options import SMALL_DP_LOSS

pytestmark = pytest.mark.usefixtures("device")

SMALL = {key: value for key, value in SMALL_DP_LOSS.items() if key != "type"}
RELEASED: dict[str, Any] = {
    "resnet_layer_weights": {"layer1": 1, "layer2": 1, "layer3": 1},
    "resnet_use_input_norm": False,
    "resnet_batch_stats": True,
}
ONE_LAYER = {"vgg_layer_weights": {"conv1_1": 1}, "resnet_layer_weights": {}}
SHALLOW = {"network": "vgg11", "name": "shallow", "layer_weights": {"conv1_1": 1}, "weights": "random", "mu": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": RELEASED,
    "a small mu means a heavy ResNet": {"mu": 0.2},
    "Table 7, first row": {"resnet_layer_weights": {}},
    "Table 7, second row": {"dynamic_weighting": False, "static_weight": 0.25},
    "at most": {"max_weight": 0.125},
    "layers and weights": {"vgg_layer_weights": {"conv1_1": 0.5, "conv3_1": 2}, "criterion": "l2", "loss_weight": 3.0},
    "charbonnier": {**ONE_LAYER, "criterion": "charbonnier"},
    "fro": {**ONE_LAYER, "criterion": "fro"},
    "[-1, 1]": {"range_norm": True},
    "another reference": {"reference": "resnet", "mu": 0.25, "eps": 1e-3},
    "without VGG": {"reference": "resnet", "vgg_layer_weights": {}},
    "four terms": {"extra_terms": [SHALLOW, {"type": "L1Loss", "mu": 1.0, "loss_weight": 3.0}]},
}
CRITERIA = {
    "l1": lambda d: d.abs().mean(),
    "l2": lambda d: d.square().mean(),
    "charbonnier": lambda d: (d**2 + 1e-12).sqrt().mean(),
    "fro": lambda d: torch.norm(d, p="fro"),
}


@cache
def torchvision_networks(device: torch.device) -> tuple[list[nn.Conv2d], nn.Module]:
    """VGG11's convolutions and a ResNet-18 of torchvision, with the weights of ``small_loss``."""
    vgg = small_loss().all_terms["vgg"].features
    resnet = on_device(models.resnet18(weights=None).double())
    source = ResNetFeatures(["layer3"], "resnet18", "random", batch_stats=True)  # unfolded, of the same seed
    target = nn.Sequential(resnet.conv1, resnet.bn1, resnet.layer1, resnet.layer2, resnet.layer3)
    with torch.no_grad():
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # the statistics of a batch are not kept for the next test
    return [module for module in vgg.modules() if isinstance(module, nn.Conv2d)], resnet


def second_computation(options: dict[str, Any], x: Tensor, gt: Tensor) -> dict[str, Tensor]:
    """Eq. 4, 5 with torchvision's own ResNet, given the loss's weights, and plain tensor arithmetic."""
    given = {name: p.default for name, p in inspect.signature(DPLoss).parameters.items()}
    given |= {"vgg_layer_weights": {"conv3_1": 1}} | options
    convolutions, resnet = torchvision_networks(current_device())
    resnet.train(given["resnet_batch_stats"])

    def normalise(x: Tensor, normalised: bool = True) -> Tensor:
        x = (x + 1) / 2 if given["range_norm"] else x
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (x - mean) / std if normalised else x

    def vgg_features(x: Tensor) -> dict[str, Tensor]:
        found, x = {}, normalise(x)
        for number, convolution in enumerate(convolutions, start=1):
            found[f"conv{number}_1"] = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
            x = F.max_pool2d(F.relu(found[f"conv{number}_1"]), 2)
        return found

    def resnet_features(x: Tensor) -> dict[str, Tensor]:
        x = resnet.conv1(normalise(x, given["resnet_use_input_norm"]))
        found, x = {}, resnet.maxpool(resnet.relu(resnet.bn1(x)))
        for number, stage in enumerate((resnet.layer1, resnet.layer2, resnet.layer3), start=1):
            x = found[f"layer{number}"] = stage(x)
        return found

    terms = {
        "vgg": (vgg_features, given["vgg_layer_weights"]),
        "resnet": (resnet_features, given["resnet_layer_weights"]),
        "shallow": (vgg_features, SHALLOW["layer_weights"]),
    }
    values = {}
    for name, (features, weights) in terms.items():
        if weights and (name != "shallow" or given["extra_terms"]):
            of_x, of_gt, criterion = features(x), features(gt), CRITERIA[given["criterion"]]
            values[name] = sum(weight * criterion(of_x[layer] - of_gt[layer]) for layer, weight in weights.items())
    return values | ({"L1Loss": 3 * (x - gt).abs().mean()} if given["extra_terms"] else {})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_gradient_and_terms_equal_a_second_computation(options: dict[str, Any]) -> None:
    """L_ref + sum of w_i L_i, w_i = detach(L_ref / (mu_i L_i + eps)); and `backward` adds the gradient of `forward`."""
    loss = small_loss(**options, log_gradient_shares=True)
    assert loss.terms == {}
    x, gt = images()
    if options.get("range_norm"):
        x, gt = (2 * x - 1).detach().requires_grad_(), 2 * gt - 1
    values = second_computation(options, x, gt)
    reference = options.get("reference", "vgg")
    weights = {reference: 1.0}
    for name in values.keys() - {reference}:
        mu = {"shallow": 2.0, "L1Loss": 1.0}.get(name, options.get("mu", 0.5))
        weights[name] = values[reference].item() / (mu * values[name].item() + options.get("eps", 1e-8))
        weights[name] = min(options.get("static_weight", weights[name]), options.get("max_weight", 1e9))
    scale = options.get("loss_weight", 1.0)
    total = scale * sum(weights[name] * value for name, value in values.items())
    expected = torch.autograd.grad(total, x, retain_graph=True)[0]
    norms = {name: weights[name] * torch.autograd.grad(values[name], x, retain_graph=True)[0].norm() for name in values}
    terms = {f"l_{name}": value.item() for name, value in values.items()}
    terms |= {"weight" if n == "resnet" else f"weight_{n}": w for n, w in weights.items() if n != reference}

    value, style = loss(x, gt)
    assert style is None
    torch.testing.assert_close(value, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], expected, rtol=1e-9, atol=1e-15)
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(terms, rel=1e-12)
    assert {(term.dim(), term.requires_grad) for term in loss.terms.values()} == {(0, False)}
    assert (loss.l_vgg, loss.l_resnet, loss.weight) == tuple(map(loss.terms.get, ("l_vgg", "l_resnet", "weight")))

    x.grad = torch.ones_like(x)
    value = loss.backward(x, gt, lambda value: value * 0.25)
    assert not value.requires_grad
    torch.testing.assert_close(value, total.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad - 1, 0.25 * expected, rtol=1e-9, atol=1e-14)
    terms |= {f"share_{name}": (norm / sum(norms.values())).item() for name, norm in norms.items()}
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(terms, rel=1e-9)
    named = {name.replace("l_", "l_g_", 1) if name[:2] == "l_" else f"dp_{name}": term for name, term in terms.items()}
    assert {name: term.item() for name, term in loss.log_terms().items()} == pytest.approx(named, rel=1e-9)


@pytest.mark.parametrize("options", [{}, RELEASED, {**ONE_LAYER, "criterion": "fro"}])
def test_identical_images_give_zero_and_finite_gradients(options: dict[str, Any]) -> None:
    x, _ = images()
    value, _ = small_loss(**options)(x, x.detach().clone())
    value.backward()
    assert value.item() == 0
    assert x.grad.abs().max().item() == 0


@pytest.mark.parametrize("batch_stats", [False, True])
def test_frozen_networks_are_unchanged_and_no_gradient_flows_to_the_original(batch_stats: bool) -> None:
    loss = small_loss(resnet_batch_stats=batch_stats)
    parent = nn.ModuleDict({"net": nn.Conv2d(3, 3, 1), "loss": loss}).requires_grad_(True).train()
    assert set(parent.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(parent.parameters())) == 2
    x, gt = images()
    gt.requires_grad_()
    first = loss(x, gt)[0]  # and batch-norm is folded
    networks = [term.features for term in loss.all_terms.values()]
    before = [value.clone() for net in networks for value in net.state_dict().values()]
    first.backward()
    assert gt.grad is None
    for net in networks:
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert not any(module.training for module in net.modules())
    assert torch.equal(first, loss(x, gt)[0])
    after = [value for net in networks for value in net.state_dict().values()]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("options", [{}, RELEASED])
def test_float32_under_autocast(options: dict[str, Any], device: torch.device) -> None:
    loss = small_loss(**options).float()
    x, gt = (image.float() for image in images())
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value, _ = loss(x, gt)
    assert {value.dtype, *(term.dtype for term in loss.terms.values())} == {torch.float32}
    assert value.item() == pytest.approx(loss(x, gt)[0].item(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, RELEASED])
def test_images_may_have_another_type_than_the_networks(options: dict[str, Any], dtype: torch.dtype) -> None:
    loss, (x, gt) = small_loss(**options).float(), images()
    x = x.detach().to(dtype).requires_grad_()
    value, _ = loss(x, gt)
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert value.item() == pytest.approx(loss(x.detach().float(), gt.float())[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "x", "gt", "message"),
    [
        ({}, (2, 1, 32, 32), (2, 1, 32, 32), r"N, 3, H, W.*\(2, 1, 32, 32\).*input_channels: repeat"),
        ({}, (2, 3, 32, 32), (2, 3, 32, 16), r"N, 3, H, W.*\(2, 3, 32, 32\).*\(2, 3, 32, 16\)"),
        ({}, (3, 32, 32), (3, 32, 32), "N, 3, H, W"),
        ({}, (0, 3, 32, 32), (0, 3, 32, 32), "at least one image"),
        ({}, (1, 3, 2, 64), (1, 3, 2, 64), "at least 4 pixels"),
        ({"input_channels": "repeat"}, (1, 3, 32, 32), (1, 3, 32, 32), r"gray images.*\(1, 3, 32, 32\)"),
        ({"input_channels": [3, 2, 1]}, (1, 3, 32, 32), (1, 3, 32, 32), "indices below 3"),
    ],
)
def test_images_that_the_loss_cannot_take_are_refused(
    options: dict[str, Any], x: tuple[int, ...], gt: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_loss(**options)(torch.rand(x), torch.rand(gt))


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
        with pytest.raises(UserError, match=r"floating-point.*uint8"):
            loss(x.to(torch.uint8), gt.to(torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0}, "mu.*> 0.*got 0"),
        ({"mu": float("nan")}, "mu"),
        ({"eps": -1e-8}, "eps"),
        ({"max_weight": 0}, "max_weight.*> 0.*got 0"),
        ({"criterion": "l3"}, "l1, l2, charbonnier, fro.*l3"),
        ({"vgg_type": "vgg12"}, "vgg19.*vgg12"),
        ({"resnet_type": "vit"}, "resnet50.*vit"),
        ({"vgg_layer_weights": {"conv9_9": 1}}, "conv3_1.*conv9_9"),
        ({"vgg_layer_weights": {}}, "at least one layer"),
        ({"resnet_layer_weights": {"conv4_6": 1}}, "layer3.*conv4_6"),
        ({"reference": "lpips"}, r"reference.*vgg, resnet.*'lpips'"),
        *(
            ({"input_channels": channels}, "input_channels")
            for channels in ("gray", [0, 1], [], [[0, 1, 2], [1]], [0, 1, -1], [0.0, 1.0, 2.0], 3)
        ),
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
        "vgg_layer_weights": {"conv5_4": 1}, "resnet_layer_weights": {"layer3": 1}, "reference": "vgg",
        "mu": 0.5, "eps": 1e-8, "dynamic_weighting": True, "static_weight": 1.0, "max_weight": None,
        "sync_weight": True, "loss_weight": 1.0, "criterion": "l1", "vgg_type": "vgg19", "resnet_type": "resnet50",
        "use_input_norm": True, "resnet_use_input_norm": True, "resnet_batch_stats": False, "range_norm": False,
        "vgg_weights": "imagenet", "resnet_weights": "imagenet", "input_channels": None, "log_gradient_shares": False,
    }  # fmt: skip
    built = build_loss({"type": "DPLoss", "vgg_weights": "random", "resnet_weights": "random"})
    assert built.all_terms["vgg"].features.layers == ("conv5_4",)
    assert built.all_terms["resnet"].features.layers == ("layer3",)


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


# Common operations of PyTorch programs on a module.
Pair = tuple[Tensor, Tensor]


@pytest.fixture
def module() -> DualPerceptualLoss:
    return on_device(DualPerceptualLoss(**SMALL))


@pytest.fixture
def pair() -> Pair:
    x, gt = images()
    return x.detach().float().requires_grad_(), gt.float()


def test_a_first_call_in_inference_mode_does_not_break_training(module: DualPerceptualLoss, pair: Pair) -> None:
    skip_if_imitated(current_device(), "inference mode")
    with torch.inference_mode():
        expected = module(*pair)
    value = module(*pair)
    value.backward()
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert value.item() == pytest.approx(on_device(DPLoss(**SMALL))(*pair)[0].item(), rel=1e-6)


def test_it_compiles_without_graph_breaks_before_the_first_call(module: DualPerceptualLoss, pair: Pair) -> None:
    skip_if_imitated(current_device(), "torch.compile")
    value = torch.compile(module, fullgraph=True, backend="eager")(*pair)
    value.backward()
    assert value.item() == pytest.approx(module(*pair).item(), rel=1e-6)


def test_a_copy_and_a_saved_one_are_the_same_and_of_their_own(module: DualPerceptualLoss, pair: Pair) -> None:
    expected, file = module(*pair), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(twin(*pair), expected)
        twin.all_terms["vgg"].features.net.get_submodule("features.0").weight.data.zero_()
    assert torch.equal(module(*pair), expected)


def test_it_moves_between_dtypes_and_back(module: DualPerceptualLoss, pair: Pair) -> None:
    skip_if_imitated(current_device(), "parameters of another dtype")
    expected = module(*pair).item()
    x = pair[0].detach().double().requires_grad_()
    loss = module(x, pair[1].double())  # images of numpy, weights in float32
    loss.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    double = module.double()(*(image.double() for image in pair))
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(expected, rel=1e-5)
    assert module.float()(*pair).item() == pytest.approx(expected, rel=1e-6)
    weights = [p for term in module.to("meta").all_terms.values() for p in term.parameters()]
    assert {weight.device.type for weight in weights} == {"meta"}


def test_without_gradients_nothing_is_synchronised(
    module: DualPerceptualLoss, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation on one rank only would wait for the others forever."""
    start_mean = Mock(side_effect=lambda values: lambda: values)
    monkeypatch.setattr("dp_basicsr.losses.dual_perceptual_loss.start_mean", start_mean)
    with torch.no_grad():
        module(*pair)
    module(pair[0].detach(), pair[1])
    assert start_mean.call_count == 0
    module(*pair)
    assert start_mean.call_count == 1


def test_backward_reaches_the_network_behind_the_images() -> None:
    x, gt = images()
    net, loss = nn.Conv2d(3, 3, 1).to(x), small_loss()
    value, _ = loss(net(x.detach()), gt)
    expected = torch.autograd.grad(value, list(net.parameters()))
    loss.backward(net(x.detach()), gt)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-14)
