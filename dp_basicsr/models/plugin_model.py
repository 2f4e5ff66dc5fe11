"""What every model of the plugin does differently from BasicSR's."""

from __future__ import annotations

from typing import Any

from dp_basicsr.models.checkpointed_model import CheckpointedModel

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def use_channels_last(net: nn.Module) -> None:
    """Keep a network's weights, and so its features, in the order that convolutions are fastest in.

    BasicSR's discriminators flatten their features by ``view``, which takes contiguous ones only: the last batch-norm
    hands over a contiguous copy of its few pixels.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        norms[-1].register_forward_hook(lambda module, inputs, output: output.contiguous())


class PluginModel(CheckpointedModel):
    """Runs under torchrun on a CPU too, reads losses from the device only when logged, saves whole files or stops."""

    log_dict: Any  # name of a loss -> 0-d tensor

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device; wrap it for several processes.

        BasicSR always asks for a CUDA device here. Buffers are broadcast here alone: batch-norm's running statistics
        in D are read by no training step, spectral norm's vectors stay the same on all processes, and writing them
        between D's two forward passes would invalidate what the first has saved for its backward.
        """
        net = net.to(self.device)
        train = self.opt.get("train") or {}
        if train.get("channels_last", False):
            use_channels_last(net)
        if train.get("compile", False):
            net.compile()
        if not self.opt["dist"]:
            return super().model_to_device(net)
        for buffer in net.buffers():  # once: spectral norm's vectors are drawn at random, and each step reads them
            distributed.broadcast(buffer, src=0)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            # Without, DDP orders gradients anew after a run's first step, and sums of three and more round otherwise.
            find_unused_parameters=self.opt.get("find_unused_parameters", self.opt.get("deterministic", False)),
        )

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **settings: Any) -> torch.optim.Optimizer:
        """BasicSR's optimizers; Adam in its fused form, one pass over the weights in place of a dozen."""
        if optim_type == "Adam":
            settings = {"fused": True, **settings}
        return super().get_optimizer(optim_type, params, lr, **settings)

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses as numbers, averaged over the processes. All processes must call it together."""
        return self.reduce_loss_dict(self.log_dict)
