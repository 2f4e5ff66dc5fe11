"""What every model of the plugin does differently from BasicSR's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint import write_checkpoint
from dp_basicsr.errors import UserError
from dp_basicsr.loading import load

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import master_only
from torch import nn
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


class PluginModel(BaseModel):
    """Runs under torchrun on a CPU too, reads losses from the device only when logged, saves whole files or stops."""

    log_dict: Any  # name of a loss -> 0-d tensor

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device; wrap it for several processes.

        BasicSR always asks for a CUDA device here. Buffers are not broadcast: the only ones are batch-norm's running
        statistics in D, which no training step reads, and writing them between D's two forward passes would
        invalidate what the first has saved for its backward.
        """
        net = net.to(self.device)
        train = self.opt.get("train") or {}
        if train.get("channels_last", False):
            use_channels_last(net)
        if train.get("compile", False):
            net.compile()
        if not self.opt["dist"]:
            return super().model_to_device(net)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=self.opt.get("find_unused_parameters", False),
        )

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **settings: Any) -> torch.optim.Optimizer:
        """BasicSR's optimizers; Adam in its fused form, one pass over the weights in place of a dozen."""
        if optim_type == "Adam":
            settings = {"fused": True, **settings}
        return super().get_optimizer(optim_type, params, lr, **settings)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params") -> None:
        """Load as BasicSR does, which leaves what may be in the file to torch's environment variables.

        Raises:
            UserError: The file holds more than weights, or not those of this network.
        """
        load(load_path, "network", map_location="meta")
        try:
            super().load_network(net, load_path, strict, param_key)
        except (RuntimeError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"network {load_path} does not fit: {' '.join(str(error).split())}") from error

    @master_only
    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Save in BasicSR's form, ``{param_key: state_dict}``; BasicSR goes on without the file where that fails.

        Raises:
            UserError: See :func:`~dp_basicsr.checkpoint.write_checkpoint`.
        """
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        states = [self.get_bare_model(bare).state_dict() for bare in nets]
        on_cpu = [{name: value.cpu() for name, value in state.items()} for state in states]
        iteration = "latest" if current_iter == -1 else current_iter
        path = Path(self.opt["path"]["models"], f"{net_label}_{iteration}.pth")
        write_checkpoint(dict(zip(keys, on_cpu, strict=True)), path)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save optimizers and schedulers in BasicSR's form; there is none for the last model (-1).

        Raises:
            UserError: See :func:`~dp_basicsr.checkpoint.write_checkpoint`.
        """
        if current_iter != -1:
            path = Path(self.opt["path"]["training_states"], f"{current_iter}.state")
            write_checkpoint(self.training_state(epoch, current_iter), path)

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """What a run goes on from, besides its networks."""
        return {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }

    def get_current_log(self) -> dict[str, float]:
        """The last step's losses as numbers, averaged over the processes. All processes must call it together."""
        return self.reduce_loss_dict(self.log_dict)
