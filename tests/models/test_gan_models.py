"""The step of the two GAN models against BasicSR's own models and against the equations, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.losses import DPLoss

import pytest
import torch
from basicsr.losses.loss_util import get_refined_artifact_map
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

from tests.support import models
from tests.support.gpu import current_device, on_device, skip_if_imitated
from tests.support.models import step, train
from tests.support.networks import largest_difference
from tests.support.options import SMALL_DP_LOSS, model_options, random_batch

pytestmark = pytest.mark.usefixtures("device")

STOCK = {"ESRGANDPModel": "ESRGANModel", "SRGANDPModel": "SRGANModel"}


build = partial(models.build, double=True)


@pytest.mark.parametrize("ours", STOCK)
@pytest.mark.parametrize(
    "options", [{}, {"net_d_iters": 2, "ema_decay": 0.9}, {"net_d_init_iters": 2, "pixel_opt": None}]
)
def test_steps_equal_basicsr_s_model(ours: str, options: dict[str, Any], tmp_path: Path) -> None:
    """DPLoss drops into the stock models; after four steps ours has their parameters, with fewer passes.

    One of D for the original and one for the result; BasicSR's RaGAN step needs five.
    """
    model, stock = build(ours, tmp_path, **options), build(STOCK[ours], tmp_path, **options)
    graphs, calls_of_d = [], []
    model.net_g.register_forward_hook(lambda net, inputs, output: graphs.append(output.requires_grad))
    model.net_d.register_forward_hook(lambda *_: calls_of_d.append(0))
    train(model), train(stock)
    first, every = options.get("net_d_init_iters", 0), options.get("net_d_iters", 1)
    assert graphs == [number > first and number % every == 0 for number in (1, 2, 3, 4)], "of G: when it is updated"
    assert len(calls_of_d) == 8
    assert isinstance(stock.cri_perceptual, DPLoss)
    assert largest_difference(model.net_g, stock.net_g) < 1e-9
    assert largest_difference(model.net_d, stock.net_d) < 1e-9
    if "ema_decay" in options:
        assert largest_difference(model.net_g_ema, stock.net_g_ema) < 1e-9
    log = model.get_current_log()
    for name, value in stock.get_current_log().items():
        assert log[name] == pytest.approx(value, rel=1e-9, abs=1e-15), name
    image = ["l_g_pix", "l_g_vgg", "l_g_resnet", "dp_weight", "l_g_percep", "l_g_gan"]
    assert list(log) == [*image["pixel_opt" in options :], "l_d_real", "l_d_fake", "out_d_real", "out_d_fake"]
    assert all(isinstance(value, float) for value in log.values())
    assert log["l_g_percep"] == pytest.approx(log["l_g_vgg"] + log["dp_weight"] * log["l_g_resnet"], rel=1e-9)


class PlainStep:
    """Eq. 2, 3 with separate passes and binary cross-entropy on probabilities, on copies of a model's networks."""

    def __init__(self, model: Any, relativistic: bool) -> None:
        self.model, self.relativistic = model, relativistic
        adam = {"lr": 1e-3, "betas": (0.9, 0.99)}
        self.adam_g = torch.optim.Adam(model.net_g.parameters(), **adam)
        self.adam_d = torch.optim.Adam(model.net_d.parameters(), **adam)

    def step(self, lq: torch.Tensor, gt: torch.Tensor, sizes: list[int]) -> None:
        """One step of both networks on the mean of the parts' gradients, each with the weight of its size."""
        pairs = zip(lq.split(sizes), gt.split(sizes), strict=True)
        gradients = [self.gradients(*pair) for pair in pairs]
        for index, (net, adam) in enumerate(((self.model.net_g, self.adam_g), (self.model.net_d, self.adam_d))):
            for number, parameter in enumerate(net.parameters()):
                weighted = [size * part[index][number] for size, part in zip(sizes, gradients, strict=True)]
                parameter.grad = sum(weighted) / len(lq)
            adam.step()

    def gradients(self, lq: torch.Tensor, gt: torch.Tensor) -> tuple[Any, Any]:
        net_g, net_d = self.model.net_g, self.model.net_d
        sr = net_g(lq)
        l_dp, _ = self.model.cri_perceptual(sr, gt)
        l_g = 1e-2 * (sr - gt).abs().mean() + 5e-3 * self.adversarial(net_d(gt).detach(), net_d(sr), for_g=True) + l_dp
        grads_g = torch.autograd.grad(l_g, list(net_g.parameters()))
        l_d = self.adversarial(net_d(gt), net_d(sr.detach()), for_g=False)
        return grads_g, torch.autograd.grad(l_d, list(net_d.parameters()))

    def adversarial(self, real: torch.Tensor, fake: torch.Tensor, for_g: bool) -> torch.Tensor:
        if not self.relativistic:
            if for_g:
                return -F.logsigmoid(fake).mean()
            return -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()
        if for_g:
            d_real, d_fake = torch.sigmoid(real - fake.mean()), torch.sigmoid(fake - real.mean())
            return -(torch.log(1 - d_real).mean() + torch.log(d_fake).mean()) / 2
        d_real = torch.sigmoid(real - fake.detach().mean())
        d_fake = torch.sigmoid(fake - real.detach().mean())
        return -(torch.log(d_real).mean() + torch.log(1 - d_fake).mean()) / 2


@pytest.mark.parametrize("ours", STOCK)
def test_ldl_equals_basicsr_s_realesrgan_model(ours: str, tmp_path: Path) -> None:
    """Value and gradient of the artifact map's loss together with the others, as in RealESRGANModel."""
    model = build(ours, tmp_path, ldl_opt={"type": "LDLLoss", "loss_weight": 2.0}, ema_decay=0.5)
    plain = build(ours, tmp_path, ema_decay=0.5)
    step(model, 1), step(plain, 1)  # leaves an EMA that differs from G
    plain.net_g.load_state_dict(build(ours, tmp_path).net_g.state_dict())
    for name in ("net_g", "net_d", "net_g_ema"):
        getattr(model, name).load_state_dict(getattr(plain, name).state_dict())
    lq, gt = (on_device(images) for images in random_batch(5, torch.float64).values())
    sr, ema = plain.net_g(lq), plain.net_g_ema(lq)
    weight = get_refined_artifact_map(gt, sr, ema, 7)
    expected = 2.0 * (torch.mul(weight, sr) - torch.mul(weight, gt)).abs().mean()
    gradients = torch.autograd.grad(expected, list(plain.net_g.parameters()))
    step(model, 5), step(plain, 5)
    assert model.get_current_log()["l_g_ldl"] == pytest.approx(expected.item(), rel=1e-12)
    assert expected > 0
    for a, b, ldl in zip(model.net_g.parameters(), plain.net_g.parameters(), gradients, strict=True):
        torch.testing.assert_close(a.grad, b.grad + ldl, rtol=1e-9, atol=1e-15)


class Drawn(nn.Module):
    """A loss that draws new pixel weights at each call."""

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        return ((x - gt) * torch.rand_like(x)).abs().mean()


def test_resume_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a random term, balanced losses, an adversarial loss that grows, and a batch in parts."""
    skip_if_imitated(current_device(), "loading its own tensors")
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Drawn", Drawn)
    options = {
        "grad_accumulation": 2,
        "perceptual_opt": {**SMALL_DP_LOSS, "extra_terms": [{"type": "Drawn"}]},
        "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5e-3, "ramp": 4},
        "balance": {"shares": {"pix": 0.05, "vgg": 0.45, "Drawn": 0.35, "gan": 0.15}, "ema": 0.9},
    }
    model, resumed = (models.build("ESRGANDPModel", tmp_path, **options) for _ in range(2))
    torch.manual_seed(0)
    step(model, 1), step(model, 2)
    model.save(0, 2)
    logs = [(step(model, iteration), model.get_current_log()) for iteration in (3, 4)]
    for label in ("g", "d"):
        resumed.load_network(getattr(resumed, f"net_{label}"), str(tmp_path / f"net_{label}_2.pth"))
    torch.manual_seed(99)
    resumed.resume_training(torch.load(tmp_path / "2.state"))
    assert [(step(resumed, iteration), resumed.get_current_log()) for iteration in (3, 4)] == logs
    assert all(map(torch.equal, resumed.net_g.parameters(), model.net_g.parameters()))
    assert torch.equal(resumed.step.balancer.moments, model.step.balancer.moments)


@pytest.mark.parametrize(
    ("ours", "sizes"), [("ESRGANDPModel", [2]), ("SRGANDPModel", [1, 1]), ("ESRGANDPModel", [2, 1, 1])]
)
def test_steps_equal_the_equations(ours: str, sizes: list[int], tmp_path: Path) -> None:
    """Also with the batch in parts, as even as possible."""
    schedule = {"scheduler": {"type": "MultiStepLR", "milestones": [100], "gamma": 0.5}}
    model, other = build(ours, tmp_path, **schedule, grad_accumulation=len(sizes)), build(ours, tmp_path)
    plain = PlainStep(other, relativistic=ours == "ESRGANDPModel")
    for iteration in range(1, 5):
        pairs = random_batch(iteration, torch.float64), random_batch(9 * iteration, torch.float64)
        batch = {name: torch.cat([pair[name] for pair in pairs])[: sum(sizes)] for name in ("lq", "gt")}
        plain.step(**{name: on_device(images) for name, images in batch.items()}, sizes=sizes)
        step(model, iteration, **batch)
    assert largest_difference(model.net_g, other.net_g) < 1e-9
    assert largest_difference(model.net_d, other.net_d) < 1e-9


class Returning(nn.Module):
    """A loss of two parts, which it returns as its class says."""

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> Any:
        return self.returned((x - gt).abs().mean(), (x.mean() - gt.mean()) ** 2)


RETURNED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "Sum": lambda far, near: far + near,
    "Pair": lambda far, near: (far, near),
    "Parts": lambda far, near: {"far": far, "near": near},
    "Detached": lambda far, near: far.detach(),
    "Nothing": lambda far, near: (None, None),
}


@pytest.mark.parametrize("key", ["pixel_opt", "perceptual_opt"])
def test_losses_of_others_return_a_tensor_a_tuple_or_a_dict(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, returned in RETURNED.items():
        loss = type(kind, (Returning,), {"returned": staticmethod(returned)})
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, kind, loss)
    plain, pair, parts = (
        train(build("ESRGANDPModel", tmp_path, **{key: {"type": kind}}), 2) for kind in ("Sum", "Pair", "Parts")
    )
    name = "l_g_pix" if key == "pixel_opt" else "l_g_percep"
    assert {name, "l_g_style"} <= pair.get_current_log().keys()
    log = parts.get_current_log()
    assert log[name] == pytest.approx(log[f"{name}_far"] + log[f"{name}_near"], rel=1e-12)
    for model in (pair, parts):
        assert largest_difference(model.net_g, plain.net_g) < 1e-12
    for kind in ("Detached", "Nothing"):
        with pytest.raises(UserError, match=f"{name.removeprefix('l_g_')}: expected a loss with a gradient"):
            step(build("ESRGANDPModel", tmp_path, **{key: {"type": kind}}), 1)


@pytest.mark.parametrize(
    "loss",
    [{"type": "DPLoss", "criterion": "fro"}, {"type": "PerceptualLoss", "criterion": "fro"},
     {"type": "DPLoss", "extra_terms": [{"type": "PerceptualLoss", "criterion": "fro"}]}],
)  # fmt: skip
def test_the_frobenius_norm_of_a_part_of_a_batch_is_refused(loss: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"criterion: expected a mean .* got fro"):
        build("PSNRModel", tmp_path, perceptual_opt=loss, grad_accumulation=2)


def test_warm_start_from_a_psnr_trained_generator(tmp_path: Path) -> None:
    psnr = models.build("PSNRModel", tmp_path, perceptual_opt=None, ema_decay=0.5)
    step(psnr, 1)
    psnr.save(0, 1)
    opt = model_options("ESRGANDPModel", tmp_path, ema_decay=0.999)
    opt["path"] |= {"pretrain_network_g": str(tmp_path / "net_g_1.pth"), "param_key_g": "params_ema"}
    model = build_model(opt)
    assert largest_difference(model.net_g, psnr.net_g_ema) == 0
    assert largest_difference(model.net_g_ema, psnr.net_g_ema) == 0
    assert psnr.get_current_log().keys() == {"l_pix"}


@pytest.mark.parametrize(("key", "warns"), [("params", True), ("params_ema", False)])
def test_a_test_of_other_weights_than_validation_s_is_told(
    key: str, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BasicSR#675, BasicSR#754: validation in training measures the EMA, test.py the weights ``params``."""
    psnr = models.build("PSNRModel", tmp_path, perceptual_opt=None, ema_decay=0.5)
    psnr.save(0, 1)
    opt = model_options("PSNRModel", tmp_path) | {"is_train": False}
    opt["path"] |= {"pretrain_network_g": str(tmp_path / "net_g_1.pth"), "param_key_g": key}
    build_model(opt)
    assert ("path:param_key_g=params_ema" in caplog.text) == warns
    opt["path"]["param_key_g"] = "other"
    with pytest.raises(UserError, match=r"expected weights named 'other' \(param_key\), got .*params_ema"):
        build_model(opt)
    # Alone, beside a number, they are meant whatever their name.
    weights = torch.load(tmp_path / "net_g_1.pth")["params"]
    torch.save({"state_dict": weights, "step": torch.tensor(3.0)}, tmp_path / "net_g_1.pth")
    build_model(opt)
    # KAIR's average is in another file, and that of another program an object: no key of the options takes it.
    for content, beside in (weights, "1_E.pth"), ({"model": weights, "ema": torch.nn.Identity()}, "other.pth"):
        torch.save(weights, tmp_path / beside)
        torch.save(content, tmp_path / "1_G.pth")
        opt["path"] |= {"pretrain_network_g": str(tmp_path / "1_G.pth"), "param_key_g": key}
        caplog.clear()
        build_model(opt)
        assert "path:param_key_g=params_ema" not in caplog.text
        (tmp_path / beside).unlink()


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"checkpointing": True},
     {"checkpointing": True, "channels_last": True, "grad_accumulation": 2}],
)  # fmt: skip
def test_memory_options_are_the_same_mathematics(options: dict[str, Any], tmp_path: Path) -> None:
    """`checkpointing` has the activations of one RRDB at a time: each runs twice in a step, and once in validation."""
    parts = options.get("grad_accumulation", 1)
    model, plain = (build("ESRGANDPModel", tmp_path, **given) for given in (options, {"grad_accumulation": parts}))
    calls = []
    model.net_g.body[0].rdb1.conv1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    train(model), train(plain)
    assert len(calls) == 4 * parts * (2 if "checkpointing" in options else 1)
    if "channels_last" in options:
        assert model.net_d[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert largest_difference(model.net_g, plain.net_g) < 1e-9
    assert largest_difference(model.net_d, plain.net_d) < 1e-9
    assert model.net_g.state_dict().keys() == plain.net_g.state_dict().keys()
    calls.clear()
    model.test()
    assert len(calls) == 1


def test_checkpointing_keeps_less_for_the_backward_pass(tmp_path: Path) -> None:
    """Autograd saves only the inputs of G's RRDBs in the forward pass, apart from weights."""
    saved = {}
    for checkpointing in (False, True):
        model = build("ESRGANDPModel", tmp_path, checkpointing=checkpointing)
        found: list[int] = []

        def note(tensor: torch.Tensor, found: list[int] = found) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                found.append(tensor.numel())
            return tensor

        features = on_device(torch.rand(2, 8, 32, 32, dtype=torch.float64)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.net_g.body(features)
        saved[checkpointing] = sum(found)
    assert 0 < saved[True] < 0.1 * saved[False]


SWIN = {"type": "SwinIR", "img_size": 8, "window_size": 4, "depths": [2, 2], "embed_dim": 8, "num_heads": [2, 2],
        "upscale": 4, "upsampler": "pixelshuffle", "drop_rate": 0.2, "drop_path_rate": 0.5}  # fmt: skip


@pytest.mark.parametrize("network", [{"type": "MSRResNet", "num_feat": 8, "num_block": 2}, SWIN])
def test_checkpointing_recomputes_any_network_s_blocks_to_the_same_bits(
    network: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    """With dropout and drop path, whose random numbers the second pass draws again."""
    skip_if_imitated(device, "the random state of its own")
    nets, calls = [], []
    for checkpointing in (True, False):
        model = models.build("PSNRModel", tmp_path, checkpointing=checkpointing, network_g=network)
        body = model.net_g.body if network["type"] == "MSRResNet" else model.net_g.layers
        list(body[0].modules())[-1].register_forward_hook(lambda *_: calls.append(0))
        nets.append(train(model, 2).net_g)
    assert len(calls) == 2 * 2 + 2, "twice a step with checkpointing, once without"
    assert largest_difference(*nets) == 0


class WithBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        super().__init__(block, nn.Upsample(scale_factor=4))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("WithBatchNorm", "blocks without batch-norm, got .*0 of WithBatchNorm"), ("Plain", "repeated blocks.*got Plain")],
)
def test_checkpointing_refuses_what_it_cannot_recompute(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "WithBatchNorm", WithBatchNorm)
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Plain", type("Plain", (nn.Upsample,), {}))
    with pytest.raises(UserError, match=f"checkpointing: expected (a network of )?{message}"):
        models.build("PSNRModel", tmp_path, checkpointing=True, network_g={"type": kind})


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_keeps_losses_and_w_in_float32(amp: str, device: torch.device, tmp_path: Path) -> None:
    skip_if_imitated(device, "autocast")
    model = models.build("ESRGANDPModel", tmp_path, amp=amp)
    before = [parameter.clone() for parameter in model.net_g.parameters()]
    train(model, 3)  # fp16's first scale is too large for the first step
    assert model.output.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    assert {value.dtype for value in model.log_dict.values()} == {torch.float32}
    assert model.step.scaler.is_enabled() == (amp == "fp16")
    assert all(torch.isfinite(parameter).all() for parameter in model.net_g.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.net_g.parameters(), strict=True))


def test_grad_clip_bounds_the_norm(tmp_path: Path) -> None:
    model = train(build("ESRGANDPModel", tmp_path, grad_clip=1e-3), 1)
    for net in (model.net_g, model.net_d):
        norm = torch.linalg.vector_norm(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_batch_norm_s_statistics_reach_the_ema_and_survive_a_skipped_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sesemi#36: an EMA of the parameters alone keeps the statistics of the start."""
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "WithBatchNorm", WithBatchNorm)
    options = {"network_g": {"type": "WithBatchNorm"}, "ema_decay": 0.5, "max_nonfinite": 2}
    model = train(models.build("PSNRModel", tmp_path, **options), 2)
    buffers = [buffer.clone() for buffer in model.net_g.buffers()]
    assert buffers[2] == 2, "batches of batch-norm"
    step(model, 3, **{key: value * math.nan for key, value in random_batch(3).items()})
    assert not model.step.guard.last_step_applied()
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(*pair) for pair in zip(net.buffers(), buffers, strict=True))
