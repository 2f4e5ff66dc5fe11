"""Any number of terms of any kind: registered losses, other networks, references and images, other programs."""

from __future__ import annotations

from operator import mul
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses import DualPerceptualLoss

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from tests.support.gpu import on_device
from tests.support.networks import images, small_loss
from tests.support.options import SMALL_DP_LOSS

pytestmark = pytest.mark.usefixtures("device")

SMALL = {key: value for key, value in SMALL_DP_LOSS.items() if key != "type"}


def l1(x: Tensor, gt: Tensor, factor: float) -> Tensor:
    return F.l1_loss(x, gt)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that registers a loss for this test."""

    def add(name: str, function: Any) -> str:
        class Loss(nn.Module):
            def __init__(self, factor: float = 1.0) -> None:
                super().__init__()
                self.factor = factor

            def forward(self, x: Tensor, gt: Tensor) -> Any:
                return function(x, gt, self.factor)

        monkeypatch.setitem(LOSS_REGISTRY._obj_map, name, Loss)
        return name

    return add


@pytest.mark.parametrize(
    ("form", "factors", "names"),
    [
        (lambda l1, l2: l1, (1, 0), []),
        (lambda l1, l2: (l1, None), (1, 0), []),
        (lambda l1, l2: (l1, l2), (1, 1), []),
        (lambda l1, l2: {"far": l1, "near": l2, "none": None}, (1, 1), ["far", "near"]),
    ],
)
def test_what_a_loss_returns_is_summed_and_a_dict_s_parts_are_in_the_log(
    register: Any, form: Any, factors: tuple[int, int], names: list[str]
) -> None:
    """A tensor, BasicSR's tuple with a style loss, or a dict as losses of traiNNer-redux return it."""
    kind = register("Parts", lambda x, gt, factor: form(factor * F.l1_loss(x, gt), factor * F.mse_loss(x, gt)))
    loss = small_loss(extra_terms=[{"type": kind, "name": "parts", "factor": 2.0}])
    x, gt = images()
    values = {"far": 2 * F.l1_loss(x, gt).item(), "near": 2 * F.mse_loss(x, gt).item()}
    assert loss.backward(x, gt).item() == pytest.approx(5 * loss.l_vgg.item(), rel=1e-6)
    log = {name: value.item() for name, value in loss.log_terms().items()}
    expected = {"l_g_parts": sum(map(mul, factors, values.values()))}
    expected |= {f"l_g_parts_{name}": values[name] for name in names}
    assert {name: value for name, value in log.items() if "l_g_parts" in name} == pytest.approx(expected, rel=1e-12)
    assert {"l_g_vgg", "l_g_resnet", "dp_weight", "dp_weight_parts"} <= log.keys()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, gt, factor: -F.l1_loss(x, gt), "0 or more.*noisy"),
        (lambda x, gt, factor: 1 / (1 + F.l1_loss(x, gt)), "similarity"),
        (lambda x, gt, factor: F.l1_loss(x.detach(), gt), "gradient"),
        (lambda x, gt, factor: (None, None), "gradient"),
        (lambda x, gt, factor: x.no_such_method(), r"loss\(x, gt\).*no_such_method"),
        (lambda x, gt, factor: F.l1_loss(x, gt, reduction="none"), r"loss\(x, gt\)"),
    ],
)
def test_losses_unsuitable_for_equation_9_are_refused_by_name(register: Any, function: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"extra_terms: Odd.*{message}"):
        small_loss(extra_terms=[{"type": register("Odd", function)}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "NoSuchLoss"}, "NoSuchLoss"),
        ({"type": "L1Loss", "loss_weigth": 1}, "L1Loss.*loss_weigth"),
        ({"type": "L1Loss", "mu": "abc"}, "mu.*> 0.*'abc'"),
        ({"type": "GANLoss", "gan_type": "vanilla"}, r"GANLoss.*loss\(x, gt\)"),
        ({"mu": 1}, "expected `type` or `network`"),
        ({"type": "L1Loss", "name": "vgg"}, "'vgg' is already used"),
        ({"type": "L1Loss", "name": "pix"}, "'pix' is the name of another loss"),
        ({"network": "alexnot", "layer_weights": {"a": 1}}, "resnet50.*alexnot"),
        ({"network": "alexnet", "layer_weights": {"features.99": 1}}, r"features\.12.*features\.99"),
        ({"network": "timm/no_such_net", "layer_weights": {"a": 1}}, "no_such_net"),
    ],
)
def test_wrong_entries_name_what_is_expected(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_loss(extra_terms=[entry])


def test_a_term_that_turns_negative_makes_the_step_not_finite(register: Any) -> None:
    """Its value becomes NaN, so that the step guard names it."""
    sign = [1.0]
    loss = small_loss(extra_terms=[{"type": register("Turns", lambda x, gt, factor: sign[0] * F.l1_loss(x, gt))}])
    loss(*images())
    assert loss.terms["l_Turns"] > 0
    sign[0] = -1.0
    loss(*images())
    assert loss.terms["l_Turns"].isnan()


def test_a_loss_that_refuses_values_beyond_its_range_gets_them_clamped(register: Any) -> None:
    """Losses of piq and piqa do, and networks make such values."""

    def asserting(x: Tensor, gt: Tensor, factor: float) -> Tensor:
        assert min(x.min(), gt.min()) >= 0
        assert max(x.max(), gt.max()) <= 1
        return F.l1_loss(x, gt)

    x, gt = images()
    loss = small_loss(extra_terms=[{"type": register("Asserts", asserting)}, {"type": register("Takes", l1)}])
    loss.backward(3 * x - 1, gt)
    assert loss.terms["l_Asserts"] == F.l1_loss((3 * x - 1).clamp(0, 1), gt)
    assert loss.terms["l_Takes"] == F.l1_loss(3 * x - 1, gt), "no other loss is changed"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loss_made_without_gradients_trains(register: Any, mode: Any) -> None:
    with mode():
        loss = small_loss(extra_terms=[{"type": register("Inside", l1)}])
    x, gt = images()
    loss.backward(x, gt)
    assert x.grad.isfinite().all()


def test_building_a_random_loss_does_not_change_the_random_state(register: Any) -> None:
    name = register("Draws", lambda x, gt, factor: ((x - gt) * torch.rand_like(x)).abs().mean())
    before = torch.get_rng_state()
    small_loss(extra_terms=[{"type": name}])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "layer"),
    [("regnet_y_400mf", "trunk_output.block1"), ("timm/convnext_atto", "stages.1"), ("timm/repvgg_a0", "stages.0"),
     ("timm/vit_tiny_patch16_224", "blocks.2")],
)  # fmt: skip
def test_any_classification_network_is_a_term(network: str, layer: str, tmp_path: Any) -> None:
    entry = {"network": network, "layer_weights": {layer: 1}, "weights": "random", "name": "third"}
    if network.startswith("timm/"):
        timm = pytest.importorskip("timm", reason="timm is an extra")
        with pytest.raises(UserError, match="no such file"):
            DualPerceptualLoss(**SMALL, extra_terms=[entry | {"weights": "not/there.pth"}])
    loss = on_device(DualPerceptualLoss(**SMALL, extra_terms=[entry]))
    # Of a size that is no multiple of a transformer's patches.
    x, gt = (image.float().detach().requires_grad_() for image in images(size=36))
    loss(x, gt).backward()
    assert loss.terms["l_third"] > 0
    assert x.grad.isfinite().all()
    if network in ("timm/convnext_atto", "regnet_y_400mf"):  # weights from a file
        create = timm.create_model if network.startswith("timm/") else models.get_model
        torch.save(create(network.removeprefix("timm/")).state_dict(), tmp_path / "net.pth")
        entry["weights"] = str(tmp_path / "net.pth")
    again = on_device(DualPerceptualLoss(**SMALL, extra_terms=[entry]))
    again(x, gt)
    is_same = torch.equal(loss.terms["l_third"], again.terms["l_third"])
    assert is_same == (entry["weights"] == "random"), "random weights are seeded"


@pytest.mark.parametrize(
    ("channels", "number", "triples"),
    [("repeat", 1, [[0, 0, 0]]), ([3, 2, 1], 4, [[3, 2, 1]]), ([[0, 1, 2], [4, 3, 2]], 5, [[0, 1, 2], [4, 3, 2]])],
)
def test_input_channels_select_what_the_networks_see(channels: Any, number: int, triples: list[list[int]]) -> None:
    torch.manual_seed(0)
    x, gt = on_device(torch.rand(2, 2, number, 32, 32, dtype=torch.float64))
    loss, rgb = small_loss(input_channels=channels, mu=1.0), small_loss(mu=1.0)
    leaf = x.clone().requires_grad_()
    loss.backward(leaf, gt)
    assert leaf.grad.shape == x.shape
    expected = {"l_vgg": 0.0, "l_resnet": 0.0}
    for triple in triples:
        rgb(*(torch.stack([images[:, number] for number in triple], dim=1) for images in (x, gt)))
        expected = {name: value + rgb.terms[name].item() / len(triples) for name, value in expected.items()}
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value, rel=1e-12)
