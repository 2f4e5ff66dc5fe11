"""Models, registered in BasicSR's MODEL_REGISTRY when this package is imported."""

from dp_basicsr.models.dp_models import ESRGANDPModel, PSNRModel, SRGANDPModel

__all__ = ["ESRGANDPModel", "PSNRModel", "SRGANDPModel"]
