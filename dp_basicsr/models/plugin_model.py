"""Base class of all models of the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dp_basicsr.checkpoint.weight_names import Part, rename_keys
from dp_basicsr.checkpoint.weights import compare_shapes, read_weights
from dp_basicsr.errors import UserError
from dp_basicsr.models.checkpointed_model import CheckpointedModel
from dp_basicsr.models.validation import ThreadedValidation
from dp_basicsr.utils.option_schema import add_all_defaults

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def use_channels_last(net: nn.Module) -> None:
    """Keep a network's weights and features in channels_last format, the fastest for convolutions.

    BasicSR's discriminators flatten their features with ``view``, which needs contiguous memory: the output of the last
    batch-norm, a few pixels, is made contiguous.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
    if norms:
        norms[-1].register_forward_hook(lambda module, inputs, output: output.contiguous())


class PluginModel(CheckpointedModel, ThreadedValidation):
    """Trains on any device, reads losses from the device only for logging, and writes files atomically."""

    log_dict: Any  # name of a loss -> 0-d tensor
    files: Sequence[str] = ()  # files of the batch

    def __init__(self, opt: dict[str, Any]) -> None:
        add_all_defaults(opt)  # BasicSR's own train.py has not done so
        super().__init__(opt)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Load a batch: ``lq`` and ``gt``, (N, 3, H, W), RGB, float in [0, 1] or uint8 (converted on the device)."""
        self.files = data.get("gt_path", ())
        super().feed_data({name: self.as_float(data[name]) for name in ("lq", "gt") if name in data})

    def as_float(self, images: Tensor) -> Tensor:
        """Move images to the device; convert uint8 to float32 in [0, 1], bit-identical to BasicSR's datasets."""
        images = images.to(self.device, non_blocking=True)
        # Divide by a tensor: for a Python number, CUDA multiplies by 1 / 255, which rounds differently.
        return images if images.is_floating_point() else images.float() / torch.full((), 255.0, device=self.device)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and wrap it for several processes.

        BasicSR always requires a CUDA device here. Buffers are broadcast only here: no training step reads the running
        statistics of D's batch-norm, the vectors of spectral norm stay equal on all processes, and writing them between
        D's two forward passes would invalidate the tensors that the first one saved for its backward pass.
        """
        net = net.to(self.device)
        train = self.opt.get("train") or {}
        if train.get("sync_batch_norm") and self.opt["dist"]:
            net = self.synchronise_batch_norm(net)
        if train.get("channels_last"):
            use_channels_last(net)
        if train.get("compile"):
            net.compile()
        if not self.opt["dist"]:
            return super().model_to_device(net)
        for buffer in net.buffers():  # once, because spectral norm's vectors are initialised at random
            distributed.broadcast(buffer, src=0)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            # Otherwise DDP reorders gradients after a run's first step, and sums of three or more round differently.
            find_unused_parameters=self.opt.get("find_unused_parameters", self.opt["deterministic"]),
        )

    def synchronise_batch_norm(self, net: nn.Module) -> nn.Module:
        """Make D's batch-norm use the statistics of the whole mini-batch, over all processes.

        Raises:
            UserError: The device is not a GPU, which torch requires.
        """
        if self.device.type != "cuda":
            raise UserError("train: sync_batch_norm needs GPUs; set it to false on a CPU")
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **settings: Any) -> torch.optim.Optimizer:
        """Create BasicSR's optimizers; Adam in its fused form, one pass over the weights instead of a dozen."""
        if optim_type in ("Adam", "AdamW"):
            settings = {"fused": True, **settings}
        return super().get_optimizer(optim_type, params, lr, **settings)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights in any supported file format, ``param_key`` first if a file has several.

        Raises:
            UserError: The file contains more than weights, or weights of another network.
        """
        bare = self.get_bare_model(net)
        part: Part = "discriminator" if net is getattr(self, "net_d", None) else "generator"
        weights = read_weights(Path(load_path), param_key, part)
        names, expected = weights.state, bare.state_dict()
        if part == "generator" and names.keys() != expected.keys():
            names = rename_keys(names)  # the original ESRGAN's
        differences = compare_shapes(expected, names)
        if differences and strict:
            raise UserError(f"network {load_path} does not match: {differences}; the file contains {weights.holds}")
        get_root_logger().info(f"Loading {type(bare).__name__} model from {load_path}: {weights.holds}.")
        bare.load_state_dict({name: names[name] for name in names if _fits(expected, name, names[name])}, strict=False)

    def get_current_log(self) -> dict[str, float]:
        """Return the last step's losses as numbers, averaged over the processes. Collective call."""
        return self.reduce_loss_dict(self.log_dict)


def _fits(expected: Mapping[str, Tensor], name: str, value: Tensor) -> bool:
    return name in expected and expected[name].shape == value.shape
