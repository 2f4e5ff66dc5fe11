"""The plugin's classes in BasicSR's registries."""

from __future__ import annotations

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY, Registry


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (LOSS_REGISTRY, {"DPLoss", "LDLLoss", "LPIPSLoss"}),
        (ARCH_REGISTRY, {"CompactDP", "FromFile", "RRDBNetDP", "VGGFeatures", "ResNetFeatures"}),
        (MODEL_REGISTRY, {"ESRGANDPModel", "SRGANDPModel", "PSNRModel"}),
    ],
)
def test_members_are_registered_beside_basicsr_s_own(registry: Registry, names: set[str]) -> None:
    members = set(registry.keys())
    assert names <= members
    assert names == {name for name, member in registry if member.__module__.startswith("dp_basicsr.")}
