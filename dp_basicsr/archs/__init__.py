"""Networks, registered in BasicSR's ARCH_REGISTRY when this package is imported."""

from dp_basicsr.archs.compact_arch import CompactDP
from dp_basicsr.archs.from_file_arch import FromFile
from dp_basicsr.archs.open_network import load_network
from dp_basicsr.archs.perceptual_arch import ResNetFeatures, VGGFeatures
from dp_basicsr.archs.rrdbnet_dp_arch import RRDBNetDP

__all__ = ["CompactDP", "FromFile", "RRDBNetDP", "ResNetFeatures", "VGGFeatures", "load_network"]
