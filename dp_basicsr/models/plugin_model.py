"""What every model of the plugin does differently from BasicSR's."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class PluginModel(BaseModel):
    """Runs under torchrun on a CPU too, and reads the losses back from the device only when they are logged."""

    log_dict: Any  # name of a loss -> 0-d tensor

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device; wrap it for several processes.

        BasicSR always asks for a CUDA device here. Buffers are not broadcast: the only ones are batch-norm's running
        statistics in D, which no training step reads, and writing them between D's two forward passes would
        invalidate what the first has saved for its backward.
        """
        if not self.opt["dist"]:
            return super().model_to_device(net)
        net = net.to(self.device)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=self.opt.get("find_unused_parameters", False),
        )

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses as numbers, averaged over the processes. All processes must call it together."""
        return self.reduce_loss_dict(self.log_dict)
