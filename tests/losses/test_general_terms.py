"""Any number of terms of any kind: registered losses, other networks, references and images, other programs."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses import DPLoss, DualPerceptualLoss

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.gpu import current_device, on_device, skip_if_imitated
from tests.support.networks import images, small_loss

pytestmark = pytest.mark.usefixtures("device")

SMALL: dict[str, Any] = {
    "vgg_type": "vgg11",
    "vgg_layer_weights": {"conv2_1": 1},
    "resnet_type": "resnet18",
    "resnet_layer_weights": {"layer1": 1},
    "vgg_weights": "random",
    "resnet_weights": "random",
}


class Registered:
    """Registers losses for a test and removes them afterwards."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, function: Any) -> str:
        class Loss(nn.Module):
            def __init__(self, factor: float = 1.0) -> None:
                super().__init__()
                self.factor = factor

            def forward(self, x: Tensor, gt: Tensor) -> Any:
                return function(x, gt, self.factor)

        LOSS_REGISTRY._obj_map[name] = Loss
        self.names.append(name)
        return name


@pytest.fixture
def register() -> Iterator[Registered]:
    registered = Registered()
    yield registered
    for name in registered.names:
        del LOSS_REGISTRY._obj_map[name]


def blurred(x: Tensor, gt: Tensor, factor: float) -> Tensor:
    return factor * (F.avg_pool2d(x, 4) - F.avg_pool2d(gt, 4)).abs().mean()


def test_value_and_gradient_of_four_terms_equal_the_equations(register: Registered) -> None:
    """L_VGG + sum of w_i L_i with w_i = L_VGG / (mu_i L_i + eps), in float64."""
    name = register("Blurred", blurred)
    loss = small_loss(extra_terms=[
        {"type": name, "mu": 2.0, "factor": 3.0},
        {"network": "resnet34", "layer_weights": {"layer2": 1}, "weights": "random", "mu": 1.0, "name": "deep"},
    ])  # fmt: skip
    x, gt = images()
    value, _ = loss(x, gt)
    gradient = torch.autograd.grad(value, x)[0]

    own = [loss.reference(x, gt), loss.weighted["resnet"](x, gt), blurred(x, gt, 3.0), loss.weighted["deep"](x, gt)]
    expected = own[0]
    for term, mu in zip(own[1:], (0.5, 2.0, 1.0), strict=True):
        expected = expected + own[0].detach() / (mu * term.detach() + 1e-8) * term
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-9, atol=1e-15)
    assert set(loss.terms) == {
        "l_vgg", "l_resnet", "weight", f"l_{name}", f"weight_{name}", "l_deep", "weight_deep",
    }  # fmt: skip


def test_backward_adds_the_gradient_of_forward(register: Registered) -> None:
    loss = small_loss(extra_terms=[{"type": register("Blurred", blurred)}], log_gradient_shares=True)
    x, gt = images()
    value, _ = loss(x, gt)
    expected = torch.autograd.grad(value, x)[0]
    assert loss.backward(x, gt).item() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-15)
    shares = {name: share.item() for name, share in loss.terms.items() if name.startswith("share_")}
    assert set(shares) == {"share_vgg", "share_resnet", "share_Blurred"}
    assert sum(shares.values()) == pytest.approx(1)


def test_shares_are_those_of_the_weighted_gradient_norms() -> None:
    loss = small_loss(log_gradient_shares=True, dynamic_weighting=False, static_weight=0.25)
    x, gt = images()
    norms = [torch.autograd.grad(term(x, gt), x)[0].norm() for term in (loss.reference, loss.weighted["resnet"])]
    loss.backward(x, gt)
    expected = 0.25 * norms[1] / (norms[0] + 0.25 * norms[1])
    assert loss.terms["share_resnet"].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("form", ["tuple", "tuple with None"])
def test_basicsr_s_tuple_is_summed_and_its_loss_weight_counts_once(register: Registered, form: str) -> None:
    def call(x: Tensor, gt: Tensor, factor: float) -> Any:
        return factor * F.l1_loss(x, gt), (factor * F.mse_loss(x, gt) if form == "tuple" else None)

    loss = small_loss(extra_terms=[{"type": register("Pair", call), "factor": 2.0, "dynamic_weighting": False}])
    x, gt = images()
    loss(x, gt)
    expected = 2 * F.l1_loss(x, gt) + (2 * F.mse_loss(x, gt) if form == "tuple" else 0)
    assert loss.terms["l_Pair"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_dict_is_summed_and_its_parts_are_in_the_log(register: Registered) -> None:
    """As losses of traiNNer-redux return it."""

    def call(x: Tensor, gt: Tensor, factor: float) -> Any:
        return {"far": F.l1_loss(x, gt), "near": factor * F.mse_loss(x, gt), "none": None}

    loss = small_loss(extra_terms=[{"type": register("Parts", call), "name": "parts", "factor": 2.0}])
    x, gt = images()
    value = loss.backward(x, gt)
    far, near = F.l1_loss(x, gt).item(), 2 * F.mse_loss(x, gt).item()
    log = {name: value.item() for name, value in loss.log_terms().items()}
    assert log["l_g_parts_far"] == pytest.approx(far, rel=1e-12)
    assert log["l_g_parts_near"] == pytest.approx(near, rel=1e-12)
    assert log["l_g_parts"] == pytest.approx(far + near, rel=1e-12)
    assert "l_g_parts_none" not in log
    assert value.item() == pytest.approx(5 * loss.l_vgg.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, gt, factor: -F.l1_loss(x, gt), "0 or more.*noisy"),
        (lambda x, gt, factor: 1 / (1 + F.l1_loss(x, gt)), "similarity"),
        (lambda x, gt, factor: F.l1_loss(x.detach(), gt), "gradient"),
        (lambda x, gt, factor: x.no_such_method(), r"loss\(x, gt\).*no_such_method"),
        (lambda x, gt, factor: F.l1_loss(x, gt, reduction="none"), r"loss\(x, gt\)"),
    ],
)
def test_losses_unsuitable_for_equation_9_are_refused_by_name(
    register: Registered, function: Any, message: str
) -> None:
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
        ({"network": "timm/no_such_net", "layer_weights": {"a": 1}}, "no_such_net"),
        ({"network": "convnext_tiny", "layer_weights": {"stage9": 1}, "weights": "random"}, r"features\.1.*stage9"),
    ],
)
def test_wrong_entries_name_what_is_expected(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_loss(extra_terms=[entry])


def test_a_term_that_turns_negative_makes_the_step_not_finite(register: Registered) -> None:
    """Its value becomes NaN, so that the step guard names it."""
    sign = [1.0]
    loss = small_loss(extra_terms=[{"type": register("Turns", lambda x, gt, factor: sign[0] * F.l1_loss(x, gt))}])
    loss(*images())
    assert loss.terms["l_Turns"] > 0
    sign[0] = -1.0
    loss(*images())
    assert loss.terms["l_Turns"].isnan()


def test_building_a_random_loss_does_not_change_the_random_state(register: Registered) -> None:
    name = register("Draws", lambda x, gt, factor: ((x - gt) * torch.rand_like(x)).abs().mean())
    before = torch.get_rng_state()
    small_loss(extra_terms=[{"type": name}])
    assert torch.equal(torch.get_rng_state(), before)


def test_another_reference_term() -> None:
    x, gt = images()
    loss = small_loss(reference="resnet", mu=0.25)
    value, _ = loss(x, gt)
    assert value.item() == pytest.approx(5 * loss.l_resnet.item(), rel=1e-6)
    assert set(loss.terms) == {"l_resnet", "l_vgg", "weight_vgg"}
    alone = small_loss(reference="resnet", vgg_layer_weights={})
    assert alone(x, gt)[0].item() == pytest.approx(loss.l_resnet.item(), rel=1e-12)
    with pytest.raises(UserError, match=r"reference.*vgg, resnet.*'lpips'"):
        small_loss(reference="lpips")


@pytest.mark.parametrize(
    ("network", "layer"),
    [("efficientnet_b0", "features.2"), ("convnext_tiny", "features.1"), ("timm/convnext_atto", "stages.1"),
     ("timm/repvgg_a0", "stages.0"), ("timm/vit_tiny_patch16_224", "blocks.2")],
)  # fmt: skip
def test_any_classification_network_is_a_term(network: str, layer: str) -> None:
    if network.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an extra")
    entry = {"network": network, "layer_weights": {layer: 1}, "weights": "random", "name": "third"}
    loss = on_device(DualPerceptualLoss(**SMALL, extra_terms=[entry]))
    x, gt = (image.float().detach().requires_grad_() for image in images(size=32))
    loss(x, gt).backward()
    assert loss.terms["l_third"] > 0
    assert x.grad.isfinite().all()
    again = on_device(DualPerceptualLoss(**SMALL, extra_terms=[entry]))
    again(x, gt)
    assert torch.equal(loss.terms["l_third"], again.terms["l_third"]), "random weights are seeded"


def test_timm_weights_come_from_a_file(tmp_path: Any) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "net.pth")
    entry = {"network": "timm/convnext_atto", "layer_weights": {"stages.0": 1}, "weights": str(tmp_path / "net.pth")}
    loss = on_device(DualPerceptualLoss(**SMALL, extra_terms=[entry]))
    x, gt = (image.float() for image in images())
    assert loss(x, gt) > 0
    with pytest.raises(UserError, match="no such file"):
        DualPerceptualLoss(**SMALL, extra_terms=[entry | {"weights": "not/there.pth"}])


@pytest.mark.parametrize(
    ("channels", "number", "triples"),
    [("repeat", 1, [[0, 0, 0]]), ([3, 2, 1], 4, [[3, 2, 1]]), ([[0, 1, 2], [4, 3, 2]], 5, [[0, 1, 2], [4, 3, 2]])],
)
def test_input_channels_select_what_the_networks_see(channels: Any, number: int, triples: list[list[int]]) -> None:
    torch.manual_seed(0)
    x, gt = on_device(torch.rand(2, 2, number, 32, 32, dtype=torch.float64))
    loss, rgb = small_loss(input_channels=channels, mu=1.0), small_loss(mu=1.0)
    loss(x, gt)
    expected = {"l_vgg": 0.0, "l_resnet": 0.0}
    for triple in triples:
        rgb(*(torch.stack([images[:, number] for number in triple], dim=1) for images in (x, gt)))
        expected = {name: value + rgb.terms[name].item() / len(triples) for name, value in expected.items()}
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value, rel=1e-12)
    leaf = x.clone().requires_grad_()
    loss.backward(leaf, gt)
    assert leaf.grad.shape == x.shape


@pytest.mark.parametrize(
    ("channels", "number", "message"),
    [(None, 1, "input_channels: repeat"), ("repeat", 3, "gray images.*3 channels"), ([3, 2, 1], 3, "indices below 3")],
)
def test_images_with_wrong_channels_name_the_option(channels: Any, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_loss(input_channels=channels)(*torch.rand(2, 1, number, 32, 32).double())


@pytest.mark.parametrize("channels", ["gray", [0, 1], [], [[0, 1, 2], [1]], [0, 1, -1], [0.0, 1.0, 2.0]])
def test_wrong_input_channels_are_refused(channels: Any) -> None:
    with pytest.raises(UserError, match="input_channels"):
        small_loss(input_channels=channels)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: torch.rand(0, 3, 32, 32), "at least one image"),
     (lambda: torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8), "floating-point.*uint8")],
)  # fmt: skip
def test_no_images_and_integers_are_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_loss()(make(), make())


class TestModule:
    """Common operations of PyTorch programs on a module."""

    @pytest.fixture
    def loss(self) -> DualPerceptualLoss:
        return on_device(DualPerceptualLoss(**SMALL))

    @pytest.fixture
    def pair(self) -> tuple[Tensor, Tensor]:
        x, gt = images()
        return x.detach().float().requires_grad_(), gt.float()

    def test_it_returns_a_scalar(self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor]) -> None:
        value = loss(*pair)
        assert value.shape == ()
        assert value.item() == pytest.approx(on_device(DPLoss(**SMALL))(*pair)[0].item(), rel=1e-6)

    def test_it_adds_nothing_to_a_parent_s_state_and_parameters(self, loss: DualPerceptualLoss) -> None:
        parent = nn.ModuleDict({"net": nn.Conv2d(3, 3, 1), "loss": loss})
        assert set(parent.state_dict()) == {"net.weight", "net.bias"}
        parent.requires_grad_(True).train()
        assert len(list(parent.parameters())) == 2
        assert not any(p.requires_grad for term in loss.all_terms.values() for p in term.parameters())
        assert not any(
            module.training for term in loss.all_terms.values() for module in term.modules() if module is not term
        )

    def test_a_first_call_in_inference_mode_does_not_break_training(
        self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor]
    ) -> None:
        with torch.inference_mode():
            expected = loss(*pair).item()
        value = loss(*pair)
        value.backward()
        assert value.item() == pytest.approx(expected, rel=1e-6)

    def test_it_compiles_without_graph_breaks_before_the_first_call(
        self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor]
    ) -> None:
        skip_if_imitated(current_device(), "torch.compile")
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        value = compiled(*pair)
        value.backward()
        assert value.item() == pytest.approx(loss(*pair).item(), rel=1e-6)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_it_is_copied(self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor], how: str) -> None:
        expected = loss(*pair)
        if how == "torch.save":
            file = io.BytesIO()
            torch.save(loss, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        else:
            twin = copy.deepcopy(loss) if how == "deepcopy" else pickle.loads(pickle.dumps(loss))
        assert torch.equal(twin(*pair), expected)
        twin.all_terms["vgg"].features.parts["conv1_1"].weight.data.zero_()
        assert torch.equal(loss(*pair), expected)

    def test_it_moves_between_dtypes_and_back(self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor]) -> None:
        skip_if_imitated(current_device(), "parameters of another dtype")
        expected = loss(*pair).item()
        double = loss.double()(*(image.double() for image in pair))
        assert double.dtype == torch.float64
        assert double.item() == pytest.approx(expected, rel=1e-5)
        assert loss.float()(*pair).item() == pytest.approx(expected, rel=1e-6)
        weights = [p for term in loss.to("meta").all_terms.values() for p in term.parameters()]
        assert {weight.device.type for weight in weights} == {"meta"}

    def test_without_gradients_nothing_is_synchronised(
        self, loss: DualPerceptualLoss, pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A validation on one rank only would wait for the others forever."""
        asked = []
        monkeypatch.setattr(
            "dp_basicsr.losses.dual_perceptual_loss.start_mean", lambda values: asked.append(values) or (lambda: values)
        )
        with torch.no_grad():
            loss(*pair)
        loss(pair[0].detach(), pair[1])
        assert asked == []
        loss(*pair)
        assert len(asked) == 1
