"""The base of all models of the plugin: device, networks, log; it holds a training step, a saver and a validator."""

from __future__ import annotations

import fnmatch
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dp_basicsr.archs.blocks import to_channels_last
from dp_basicsr.archs.open_network import options_of
from dp_basicsr.checkpoint.saver import Saver, Stateful
from dp_basicsr.checkpoint.weights import Part, compare_shapes, read_weights
from dp_basicsr.compat import without_buffer_sync
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.losses.balance import build_balancer
from dp_basicsr.losses.dual_perceptual_loss import DualPerceptualLoss
from dp_basicsr.losses.terms import PerceptualTerm
from dp_basicsr.models.step import TrainingStep
from dp_basicsr.models.validation import Validator, as_float
from dp_basicsr.options.schema import OptionFile
from dp_basicsr.utils.optimizers import ScheduleFree, averaged_weights, switching

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils import get_root_logger
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader


def freeze(net: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the weights that match ``train: freeze``, such as ``body.0.*``, and log how many train."""
    weights, frozen = dict(net.named_parameters()), set()
    for pattern in patterns:
        names = fnmatch.filter(weights, pattern)
        if not names:
            parts = shorten(dict.fromkeys(name.partition(".")[0] for name in weights), 20)
            raise UserError(f"train: freeze: expected patterns of weights, {pattern!r} matches none: {parts}")
        frozen |= set(names)
    for name in frozen:
        weights[name].requires_grad_(False)
    for name, module in net.named_modules():
        tracks = getattr(module, "running_mean", None) is not None
        if tracks and frozen.issuperset(f"{name}.{key}" for key in module._parameters):
            # Training would move its statistics, and normalise by those of the batch.
            module.eval().train = lambda mode=True, norm=module: norm  # type: ignore[method-assign, misc]
    left = sum(weight.numel() for name, weight in weights.items() if name not in frozen)
    total = sum(weight.numel() for weight in weights.values())
    if not left:
        raise UserError(f"train: freeze: expected patterns that leave something to train, got all weights: {patterns}")
    get_root_logger().info(f"{left:,} of {total:,} weights of {type(net).__name__} train; the others are frozen.")


class PluginModel(BaseModel):
    """A mixin over BasicSR's models: any device, atomic files, losses that are read only for the log.

    Attributes:
        step: The training step; its ``guard`` counts non-finite steps. Only in training.
        saver: Saves and restores everything that a resumed run needs. Only in training.
        validator: Validates, and remembers the best results.
    """

    log_dict: Any  # name of a loss -> 0-d tensor
    net_g: nn.Module
    lq: Tensor
    output: Tensor
    files: Sequence[str] = ()  # files of the batch
    ramp: int | None = None  # updates of G over which its adversarial loss grows

    def __init__(self, opt: dict[str, Any]) -> None:
        opt = OptionFile.of(opt).as_dict()  # with our defaults, which BasicSR's own train.py does not know
        if (network := opt.get("network_g") or {}).get("type") == "FromFile":
            network.setdefault("scale", opt.get("scale"))  # which the tensors of x2 and x3 do not tell
        super().__init__(opt)  # builds networks, and calls init_training_settings
        self.validator = Validator(self.opt, self.device)
        if self.is_train:
            nets = {"net_g": {"params": self.get_bare_model(self.net_g)}}
            if hasattr(self, "net_g_ema"):
                nets["net_g"]["params_ema"] = self.net_g_ema
            if hasattr(self, "net_d"):
                nets["net_d"] = {"params": self.get_bare_model(self.net_d)}
            others: dict[str, Stateful] = {"best_metric_results": self.validator, "scaler": self.step.scaler}
            if self.step.balancer is not None:
                others["balance"] = self.step.balancer
            if switching(self.optimizers):
                others["schedule_free"] = ScheduleFree(self.optimizers)
            self.saver = Saver(self.opt, nets, self.optimizers, self.schedulers, others)

    def init_training_settings(self) -> None:
        """Set up EMA, D, losses, optimizers and schedulers as BasicSR, and the training step."""
        train = self.opt["train"]
        percep = train.get("perceptual_opt") or {}
        criteria = [loss.get("criterion") for loss in (percep, *(percep.get("extra_terms") or ()))]
        if "fro" in criteria and (self.opt["world_size"] > 1 or train["grad_accumulation"] > 1):
            raise UserError(
                "train: perceptual_opt: criterion: expected a mean (l1, l2, charbonnier), because the norm of a batch "
                "depends on its size, with several processes or grad_accumulation; got fro"
            )
        balancer = None
        if train.get("balance"):
            balancer = build_balancer(train, isinstance(self, SRGANModel), self.ramp)
            shares = ", ".join(f"{name} {share:g}" for name, share in balancer.targets.items())
            get_root_logger().info(
                f"Balance by {balancer.by}: {shares}, relative to {balancer.reference}. For these losses mu, "
                "dynamic_weighting and static_weight are not used; others keep their loss_weight."
            )
        self.step = TrainingStep(train, self.device, balancer)
        if train["checkpointing"]:
            # Recompute the inside of each block in the backward pass instead of keeping its activations: the same
            # results, because a block's random numbers (dropout, drop path) are drawn again from the same state.
            for block in repeated_blocks(self.get_bare_model(self.net_g)):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        super().init_training_settings()
        if self.cri_perceptual is not None and train["channels_last"]:
            to_channels_last(self.cri_perceptual)
        if isinstance(self.cri_perceptual, DualPerceptualLoss) and train["compile"]:
            for term in self.cri_perceptual.all_terms.values():
                if isinstance(term, PerceptualTerm):
                    term.features.compile()

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and wrap it for several processes; BasicSR always requires CUDA here."""
        net = net.to(self.device)
        train = self.opt.get("train") or {}
        if train.get("sync_batch_norm") and self.opt["dist"]:
            if self.device.type != "cuda":
                raise UserError("train: sync_batch_norm needs GPUs; set it to false on a CPU")
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        if train.get("freeze") and self.is_train and net is self.net_g:  # before DDP, which waits for every gradient
            freeze(net, train["freeze"])
        if train.get("channels_last"):
            to_channels_last(net)
            # BasicSR's discriminators flatten their features with `view`, which needs contiguous memory: the output of
            # the last batch-norm, a few pixels, is made contiguous.
            norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
            for norm in norms[-1:]:
                norm.register_forward_hook(lambda module, inputs, output: output.contiguous())
        if train.get("compile"):
            # Each pass writes spectral norm's vectors: compiled, D's second pass invalidates what its first one saved.
            if any(name.endswith("_u") for name, _ in net.named_buffers()):
                get_root_logger().warning(f"train: compile: not {type(net).__name__}, because it has spectral norm")
            else:
                net.compile()
        if not self.opt["dist"]:
            return super().model_to_device(net)
        # Once, because spectral norm's vectors are initialised at random. Later buffers stay equal or are not read
        # in training, and writing them between D's two forward passes would invalidate what the first one saved.
        for buffer in net.buffers():
            distributed.broadcast(buffer, src=0)
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            **without_buffer_sync(),
            # Otherwise DDP reorders gradients after a run's first step, and sums of three or more round differently.
            find_unused_parameters=self.opt.get("find_unused_parameters", self.opt["deterministic"]),
        )

    def get_optimizer(self, optim_type: str, params: Any, **settings: Any) -> torch.optim.Optimizer:
        """Create an optimizer; Adam in its fused form, one pass over the weights instead of a dozen."""
        if optim_type in ("Adam", "AdamW") and not settings.get("foreach"):  # which excludes it
            settings = {"fused": True, **settings}
        return super().get_optimizer(optim_type, params, **settings)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load weights in any supported file format, ``param_key`` first if a file has several.

        More than weights, those of another network, or, also if not ``strict``, none that fits (in a test fewer than
        half, because the others stay random) are a UserError.
        """
        bare = self.get_bare_model(net)
        part: Part = "discriminator" if net is getattr(self, "net_d", None) else "generator"
        expected = bare.state_dict()
        weights = read_weights(Path(load_path), param_key, part, expected)
        fitting = {name: value for name, value in weights.state.items()
                   if name in expected and value.shape == expected[name].shape}  # fmt: skip
        differences = compare_shapes(expected, weights.state)
        too_few = not fitting or (not self.is_train and 2 * len(fitting) < len(expected))
        if differences and (strict or too_few):
            key, own = "strict_load_g", "; network_g of type FromFile is the file's own network"
            if part == "discriminator":  # which trainings alone have
                key, own = "strict_load_d", "; a new run with path:pretrain_network_g alone begins a discriminator anew"
            fits = f"only {len(fitting)} of {len(expected)} tensors fit, even" if fitting else "nothing fits, not even"
            also = "" if strict else f" ({fits} with path: {key}: false)"
            shapes = [sorted(tuple(value.shape) for value in state.values()) for state in (expected, weights.state)]
            # Of another scale, most fit. A test needs all, and so does a run that resumes.
            if shapes[0] == shapes[1]:
                also += "; it has these shapes under other names: docs/finetuning.md shows how to rename them"
            elif 2 * len(fitting) > len(expected) and self.is_train:
                share = f"the {len(fitting)} of {len(expected)} tensors that fit"
                also = f"; a new run with path: {key}: false starts from {share}{own}"
            else:
                also += own
            raise UserError(f"network {load_path} does not match: {differences}; the file has {weights.holds}{also}")
        logger = get_root_logger()
        logger.info(f"Loading {type(bare).__name__} model from {load_path}: {weights.holds}. {weights.choice}".rstrip())
        if not self.is_train and "not the EMA (params_ema)" in weights.choice:
            logger.warning(
                f"{load_path}: {weights.choice}, which validation in training measures and `dp-basicsr upscale` takes: "
                "path:param_key_g=params_ema tests it"
            )
        if differences:
            # Buffers, such as a mask of attention, are computed.
            new = ", the others keep their random start" if dict(bare.named_parameters()).keys() - fitting else ""
            count = f"{len(fitting)} of {len(expected)} tensors of {type(bare).__name__}"
            logger.warning(f"{load_path}: {count} are loaded{new}: {differences}")
        # Stock models have this method, too.
        ours = self.opt.get("network_g", {}) if net is getattr(self, "net_g", None) and not differences else {}
        theirs = options_of(weights).get("network_g", {}) if ours else {}
        # FromFile has the name of a file, which may lie elsewhere now.
        if theirs and theirs.get("type") == ours.get("type") != "FromFile":
            given = {key: value.default for key, value in inspect.signature(type(bare)).parameters.items()}
            before, now = (json.loads(json.dumps(given | network, default=str)) for network in (theirs, ours))
            if other := [f"{key} {now.get(key)} ({old} there)" for key, old in before.items() if now.get(key) != old]:
                text = "network_g is not that of its training, and results may differ"
                logger.warning(f"{load_path}: {text}: {shorten(other, 12)}")
        bare.load_state_dict(fitting, strict=False)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Load a batch: ``lq`` and ``gt``, (N, 3, H, W), RGB, float in [0, 1] or uint8 (converted on the device)."""
        self.files = data.get("gt_path", ())
        super().feed_data({name: as_float(data[name], self.device) for name in ("lq", "gt") if name in data})

    def optimize_parameters(self, current_iter: int) -> None:
        """Train one step on the batch in ``self.lq``, ``self.gt`` ((N, 3, H, W), RGB in [0, 1])."""
        self.log_dict = self.step(self, current_iter)

    def get_current_log(self) -> dict[str, float]:
        """Return the last step's losses as numbers, averaged over the processes. Collective call."""
        return self.reduce_loss_dict(self.log_dict)

    def save(self, epoch: int, current_iter: int) -> None:
        """Save a checkpoint; see ``Saver.save``."""
        self.saver.save(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restore a training state; see ``Saver.restore``."""
        self.saver.restore(resume_state)

    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> bool:
        """Validate the generator, or its EMA, on a set; see ``Validator.validate``."""
        net = getattr(self, "net_g_ema", self.net_g)
        with averaged_weights(self.optimizers):
            return self.validator.validate(net, dataloader, current_iter, tb_logger, save_img)

    def test(self) -> None:
        """Set ``self.output`` to the validated network's result for ``self.lq``; see ``Validator.upscale``."""
        self.output = self.validator.upscale(getattr(self, "net_g_ema", self.net_g), self.lq)


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """Return the blocks in a network's lists of blocks, such as its RRDBs; of nested ones the outer ones.

    None, and blocks with batch-norm, whose statistics a second pass would change, are a UserError.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and not name.startswith(tuple(f"{o}." for o in blocks)):
            # A block has layers of its own: to recompute a single convolution saves nothing.
            blocks |= {f"{name}.{key}": child for key, child in module.named_children() if list(child.children())}
    kind = type(net).__name__
    if not blocks:
        raise UserError(f"train: checkpointing: expected a network of repeated blocks such as RRDBNetDP, got {kind}")
    for name, block in blocks.items():
        if any(getattr(module, "running_mean", None) is not None for module in block.modules()):
            raise UserError(f"train: checkpointing: expected blocks without batch-norm, got {name} of {kind}")
    return list(blocks.values())
