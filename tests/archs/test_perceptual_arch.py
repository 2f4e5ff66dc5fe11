"""The feature extractors against torchvision's networks and BasicSR's VGGFeatureExtractor."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.archs import ResNetFeatures, VGGFeatures
from dp_basicsr.archs.any_network_arch import build_features
from dp_basicsr.archs.pretrained import initialise_randomly

import pytest
import torch
from basicsr.archs import vgg_arch
from torchvision import models

from tests.support.gpu import on_device

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("network", ["vgg11", "vgg13_bn"])
def test_vgg_equals_basicsr_s_extractor(network: str, tmp_path: Path, monkeypatch) -> None:
    """The same layers by the same names, including those followed by an in-place ReLU."""
    with torch.device("meta"):
        net = models.get_model(network, weights=None)
    net.classifier = torch.nn.Identity()  # 120 million weights that no features need
    torch.save(initialise_randomly(net, network).state_dict(), tmp_path / "vgg.pth")
    monkeypatch.setattr(vgg_arch, "VGG_PRETRAIN_PATH", str(tmp_path / "vgg.pth"))
    monkeypatch.setattr(vgg_arch.vgg, network, lambda **_: net)
    layers = ["conv1_1", "relu1_1", "conv2_1", "pool2", "conv3_2"]
    theirs = on_device(vgg_arch.VGGFeatureExtractor(layers, network))
    ours = on_device(VGGFeatures(layers, network, str(tmp_path / "vgg.pth")))
    x = on_device(torch.rand(1, 3, 32, 32))
    expected = theirs(x)
    for layer, value in ours(x).items():
        torch.testing.assert_close(value, expected[layer], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_resnet_stages_are_after_their_relu(network: str) -> None:
    net = on_device(ResNetFeatures(["layer1", "layer2"], network, "random"))
    features = net(on_device(torch.rand(1, 3, 32, 32)))
    assert list(features) == ["layer1", "layer2"]
    assert all(value.min() >= 0 for value in features.values())
    assert features["layer1"].shape[-1] == 8
    assert features["layer2"].shape[-1] == 4


def test_layers_after_the_last_requested_one_are_dropped() -> None:
    resnet, vgg = ResNetFeatures(["layer2"], "resnet18", "random"), VGGFeatures(["pool1"], "vgg11", "random")
    assert [name for name, _ in resnet.net.named_children()] == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    assert [name for name, _ in vgg.net.features.named_children()] == ["0", "1", "2"]


def test_batch_statistics_ignore_global_contrast() -> None:
    """The released code's reading: features of x and of x / 2 are (almost) the same."""
    x = on_device(torch.rand(2, 3, 64, 64))
    free = on_device(ResNetFeatures(["layer1"], "resnet18", "random", use_input_norm=False, batch_stats=True))
    frozen = on_device(ResNetFeatures(["layer1"], "resnet18", "random", use_input_norm=False))
    assert (free(x)["layer1"] - free(x / 2)["layer1"]).abs().mean() < 0.01 * free(x)["layer1"].mean()
    assert (frozen(x)["layer1"] - frozen(x / 2)["layer1"]).abs().mean() > 0.3 * frozen(x)["layer1"].mean()


def test_networks_are_frozen_and_stay_in_eval_mode() -> None:
    net = ResNetFeatures(["layer1"], "resnet18", "random").train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not {"mean", "std"} & net.state_dict().keys()


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_folded_batch_norm_is_the_same_network(network: str, tmp_path: Path) -> None:
    """Compared with torchvision's own network with non-initial statistics."""
    with torch.device("meta"):
        plain = models.get_model(network, weights=None)
    plain.fc = torch.nn.Identity()
    initialise_randomly(plain, network).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in plain.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for tensor in (norm.running_var, norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    torch.save(plain.state_dict(), tmp_path / "net.pth")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        net = ResNetFeatures(["layer1", "layer2"], network, str(tmp_path / "net.pth"), use_input_norm=False)
        folded, plain = on_device(net.to(dtype)), on_device(plain.to(dtype))
        x = on_device(torch.rand(1, 3, 64, 64, dtype=dtype))
        first = plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(x)))))
        features = folded(x)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        for value, expected in ((features["layer1"], first), (features["layer2"], plain.layer2(first))):
            assert (value - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("network", "layer"), [("squeezenet1_1", "features.0"), ("googlenet", "conv1.bn")])
def test_features_before_an_activation_in_place_are_not_overwritten(network: str, layer: str) -> None:
    """Its activation is a module in one, a function in the other."""
    features = build_features(network, [layer], "random")(torch.rand(1, 3, 32, 32))
    assert features[layer].min() < 0
