"""CompactDP: BasicSR's SRVGGNetCompact by its function and names, from a start that passes the image's features on."""

from __future__ import annotations

from dp_basicsr.archs import CompactDP

import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact


@pytest.mark.parametrize(("scale", "channels"), [(2, 1), (3, 3), (4, 3)])
def test_it_is_basicsrs_network(scale: int, channels: int) -> None:
    net = CompactDP(channels, channels, num_feat=4, num_conv=2, upscale=scale)
    reference = SRVGGNetCompact(channels, channels, 4, 2, scale)
    reference.load_state_dict(net.state_dict())
    assert list(net.state_dict()) == list(reference.state_dict())
    image = torch.rand(2, channels, 5, 7)
    assert torch.equal(net(image), reference(image))


def test_its_start_keeps_the_size_of_the_features() -> None:
    torch.manual_seed(0)
    net = CompactDP()
    features = [torch.rand(1, 3, 16, 16)]
    for layer in net.body[:-1]:
        features.append(layer(features[-1]))
    ratio = float((features[-1].std() / features[2].std()).detach())
    assert 0.1 < ratio < 10, ratio
    inner = [module for module in net.body if isinstance(module, torch.nn.Conv2d)][1:-1]
    drawn = torch.stack([module.weight for module in inner])
    drawn[..., 1, 1] -= torch.eye(64)
    assert float(drawn.detach().std()) == pytest.approx(0.3 * (2 / (9 * 64)) ** 0.5, rel=0.02)
