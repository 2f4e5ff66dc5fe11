"""The model that trains ESRGAN's starting point with a pixel loss."""

from __future__ import annotations

from dp_basicsr.models.plugin_model import PluginModel

from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY


@MODEL_REGISTRY.register()
class PSNRModel(PluginModel, SRModel):
    """BasicSR's SRModel on any device, for the L1-trained ("PSNR-oriented") generator that ESRGAN starts from."""

    log_dict: dict[str, float]  # SRModel reduces its losses to numbers in the step already

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses as numbers."""
        return self.log_dict
