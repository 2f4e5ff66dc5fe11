"""Models, registered in BasicSR's MODEL_REGISTRY when this package is imported."""

from dp_basicsr.models.esrgan_dp_model import ESRGANDPModel
from dp_basicsr.models.psnr_model import PSNRModel
from dp_basicsr.models.srgan_dp_model import SRGANDPModel

__all__ = ["ESRGANDPModel", "PSNRModel", "SRGANDPModel"]
