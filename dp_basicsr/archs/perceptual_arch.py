"""The frozen networks of a perceptual loss: VGG (Eq. 4), ResNet (Eq. 5), and any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from dp_basicsr.archs.pretrained import initialise_randomly, load_backbone, require_weights
from dp_basicsr.errors import UserError

import torch
from basicsr.archs.vgg_arch import NAMES, insert_bn
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models

# ImageNet statistics of RGB in [0, 1], torchvision's for every classification network.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# torchvision's ResNet family (all have conv1 ... layer4) and BasicSR's VGG names, with and without batch-norm.
RESNET_TYPES = tuple(name for name in models.list_models(module=models) if "resn" in name)
VGG_TYPES = tuple(sorted(NAMES)) + tuple(f"{name}_bn" for name in sorted(NAMES))
MAX_NAMED = 40  # choices in one message
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


class FrozenFeatures(nn.Module):
    """A network of named parts, run in order, that gives the outputs of some of them and never learns.

    It stays in eval mode when ``train()`` is called on it or its parent, and none of its weights has a gradient.

    Args:
        parts: The network, cut into named parts; what follows the last wanted one is dropped.
        layers: Names of the parts whose outputs are wanted.
        use_input_norm: Normalise RGB in [0, 1] by ``mean`` and ``std``.
        range_norm: Inputs are in [-1, 1] and are brought to [0, 1] first.
        mean, std: ImageNet's, by default.

    Raises:
        ValueError: ``layers`` is empty or has a name that the network does not have.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        parts: dict[str, nn.Module],
        layers: Iterable[str],
        use_input_norm: bool,
        range_norm: bool,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        check_layers(self.layers, parts)
        last = max(list(parts).index(name) for name in self.layers)
        self.parts = nn.ModuleDict(dict(list(parts.items())[: last + 1]))
        require_weights(self.parts)
        self.use_input_norm = use_input_norm
        self.range_norm = range_norm
        self.statistics = (tuple(mean), tuple(std))
        for name, values in zip(("mean", "std"), self.statistics, strict=True):
            self.register_buffer(name, _per_channel(values, torch.ones(())), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Stay in eval mode: a loss must not change with the model's mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenFeatures:
        """Move or cast; the statistics are made anew, because ``double()`` would keep float32's rounding of 0.485."""
        super()._apply(fn, recurse)
        self.mean, self.std = (_per_channel(values, self.mean) for values in self.statistics)
        return self

    def normalise(self, x: Tensor) -> Tensor:
        """Bring images, (N, 3, H, W), from [0, 1] or [-1, 1] to what the network takes."""
        if self.range_norm:
            x = (x + 1) / 2
        return (x - self.mean) / self.std if self.use_input_norm else x

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of ``x``, (N, 3, H, W), RGB in [0, 1] (in [-1, 1] with ``range_norm``), by name of layer."""
        x = self.normalise(x)
        features = {}
        for name, part in self.parts.items():
            x = part(x)
            if name in self.layers:
                features[name] = x
        return features


@ARCH_REGISTRY.register()
class VGGFeatures(FrozenFeatures):
    """Features of a VGG network by BasicSR's layer names: ``conv5_4`` is taken before its activation (Eq. 4).

    Args:
        layers: Names such as ``conv5_4``, ``relu3_3``, ``pool2``.
        network: ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``, each also with ``_bn``.
        weights: ``imagenet``, the path of a torchvision state_dict, or ``random`` (seeded).
        use_input_norm: See :class:`FrozenFeatures`.
        range_norm: See :class:`FrozenFeatures`.

    Raises:
        ValueError: An unknown network or layer, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        layers: Iterable[str],
        network: str = "vgg19",
        weights: str = "imagenet",
        use_input_norm: bool = True,
        range_norm: bool = False,
    ) -> None:
        _check_choice("VGG network", network, VGG_TYPES)
        names = NAMES[network.removesuffix("_bn")]
        names = insert_bn(names) if network.endswith("_bn") else names
        layers = tuple(layers)
        check_layers(layers, names)
        last = max(names.index(name) for name in layers)
        net = load_backbone(network, weights).features[: last + 1]
        if weights == "random":
            initialise_randomly(net, network)
        for before, (_, module) in pairwise(zip(names, net, strict=False)):
            if isinstance(module, nn.ReLU):
                module.inplace = before[0] not in layers  # it would overwrite the features that are handed out
        super().__init__(dict(zip(names, net, strict=False)), layers, use_input_norm, range_norm)
        self.min_size = 2 ** sum(isinstance(part, nn.MaxPool2d) for part in self.parts.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See :class:`FrozenFeatures`; ValueError where the image vanishes in the pooling."""
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"{self.layers} of a VGG needs images of at least {self.min_size} pixels a side, got {tuple(x.shape)}"
            )
        return super().forward(x)


@ARCH_REGISTRY.register()
class ResNetFeatures(FrozenFeatures):
    """Features of a ResNet by torchvision's stages: the last bottleneck's output, after its ReLU (Eq. 5).

    Args:
        layers: ``layer1`` ... ``layer4`` (the paper's conv2_3, conv3_4, conv4_6 and conv5_3 for ResNet-50).
        network: Any member of torchvision's ResNet family, for example ``resnet50``, ``resnext50_32x4d``.
        weights: ``imagenet``, the path of a torchvision state_dict, or ``random`` (seeded).
        use_input_norm: See :class:`FrozenFeatures`; the authors' released code does not normalise.
        range_norm: See :class:`FrozenFeatures`.
        batch_stats: Batch-norm uses the statistics of each batch in place of ImageNet's, as in the released code, which
            left the network in train mode. The running statistics are dropped: nothing changes from call to call.
            Without it batch-norm is a fixed scale and shift, and is folded into the convolution before it.

    Raises:
        ValueError: An unknown network or layer, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        layers: Iterable[str],
        network: str = "resnet50",
        weights: str = "imagenet",
        use_input_norm: bool = True,
        range_norm: bool = False,
        batch_stats: bool = False,
    ) -> None:
        _check_choice("ResNet network", network, RESNET_TYPES)
        layers = tuple(layers)
        check_layers(layers, RESNET_STAGES)
        net = load_backbone(network, weights)
        parts: dict[str, nn.Module] = {"stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)}
        parts |= {stage: getattr(net, stage) for stage in RESNET_STAGES[: RESNET_STAGES.index(max(layers)) + 1]}
        if weights == "random":
            initialise_randomly(nn.Sequential(*parts.values()), network)
        if batch_stats:
            use_batch_statistics(nn.Sequential(*parts.values()))
        super().__init__(parts, layers, use_input_norm, range_norm)
        # In a tuple, so that it is no submodule: what float64 is folded from, since float32 would round the products.
        self.unfolded: tuple[nn.ModuleDict, ...] = ()
        if not batch_stats:
            self.unfolded = (copy.deepcopy(self.parts),)
            _fold_batch_norm(self.parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResNetFeatures:
        """Move or cast; a cast to float64 folds batch-norm anew."""
        super()._apply(fn, recurse)
        weight = next(self.parts.parameters())
        if self.unfolded and weight.dtype == torch.float64:
            self.parts, self.unfolded = self.unfolded[0].to(weight), ()
            _fold_batch_norm(self.parts)
        return self


def _fold_batch_norm(net: nn.Module) -> None:
    """Put each batch-norm in eval mode into the convolution that stands before it (torchvision's order of children)."""
    for module in net.modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                setattr(module, norm_name, nn.Identity().eval())


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def use_batch_statistics(net: nn.Module) -> None:
    """Without running statistics batch-norm takes those of the batch, also in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        names = list(choices)
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise UserError(f"{what}: expected one of {', '.join(names[:MAX_NAMED])}{more}; got {value!r}")


def check_layers(layers: tuple[str, ...], names: Iterable[str]) -> None:
    if not layers:
        raise UserError(f"expected at least one layer out of {', '.join(names)}; got none")
    for layer in layers:
        _check_choice("layer", layer, names)
