"""``train: compile``: every network of the step is one graph, compiled once; by a backend that needs no compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from tests.support.gpu import current_device, on_device, skip_if_imitated
from tests.support.models import build, train
from tests.support.networks import largest_difference
from tests.support.options import model_options
from tests.support.validation import METRICS, SIZES, make_loader, make_model

pytestmark = pytest.mark.usefixtures("device")

# D, VGG and ResNet get an original, without a gradient, and a result, with one: one graph each.
GRAPHS = {"RRDBNetDP": 1, "SmallDiscriminator": 2, "VGGFeatures": 2, "ResNetFeatures": 2}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Compile without any graph break (or fail), and count the graphs of each network's class."""
    skip_if_imitated(current_device(), "torch.compile")
    found: dict[str, int] = {}
    compile_module = nn.Module.compile

    def compile_counting(net: nn.Module) -> None:
        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            found[type(net).__name__] = found.get(type(net).__name__, 0) + 1
            return graph.forward

        compile_module(net, backend=backend, fullgraph=True)

    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", compile_counting)
    yield found
    torch.compiler.reset()


BALANCE = {"shares": {"pix": 0.05, "vgg": 0.45, "resnet": 0.35, "gan": 0.15}, "ema": 0}


@pytest.mark.parametrize("options", [{}, {"channels_last": True, "checkpointing": True, "balance": BALANCE}])
def test_every_network_of_a_step_is_compiled_once(
    options: dict[str, Any], graphs: dict[str, int], tmp_path: Path
) -> None:
    """With the same results as without; checkpoints keep their names."""
    model, plain = (build("ESRGANDPModel", tmp_path, compile=compiled, **options) for compiled in (True, False))
    train(plain, 1)
    assert graphs == {}
    train(model, 1)
    assert graphs == GRAPHS
    assert largest_difference(model.net_g, plain.net_g) < 1e-3
    assert model.get_current_log() == pytest.approx(plain.get_current_log(), rel=1e-3)
    for name, share in options.get("balance", {}).get("shares", {}).items():
        assert model.log_dict[f"share_{name}"].item() == pytest.approx(share, abs=1e-6)
    train(model, 3)
    assert graphs == GRAPHS
    assert model.net_g.state_dict().keys() == plain.net_g.state_dict().keys()


def test_validation_compiles_nothing(graphs: dict[str, int], tmp_path: Path) -> None:
    """Images of five shapes, before and after a step."""
    model = make_model(tmp_path, train={"compile": True, "perceptual_opt": None})
    for iteration in (1, 2):
        assert model.validation(make_loader(tmp_path), iteration, None)
        train(model, 1)
    assert len(set(SIZES)) == 5
    assert model.validator.results.keys() == METRICS.keys()
    assert graphs["RRDBNetDP"] == 1


def test_the_other_network_of_the_option_files_is_one_graph(graphs: dict[str, int]) -> None:
    net = on_device(ARCH_REGISTRY.get("MSRResNet")(num_feat=8, num_block=1))
    net.compile()
    for _ in range(2):
        net(on_device(torch.rand(1, 3, 32, 32)))
    assert graphs == {"MSRResNet": 1}


def test_a_discriminator_with_spectral_norm_is_not_compiled(monkeypatch: Any, tmp_path: Path, caplog: Any) -> None:
    """Its two passes of a step write the same vectors, which a compiled backward pass would find changed."""
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled.append(type(net).__name__))
    opt = model_options("ESRGANDPModel", tmp_path, compile=True)
    build_model(opt | {"network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4}})
    assert compiled == ["RRDBNetDP", "VGGFeatures", "ResNetFeatures"]
    assert "not UNetDiscriminatorSN" in caplog.text
