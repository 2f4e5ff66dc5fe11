"""Frozen feature networks of a perceptual loss: VGG (Eq. 4), ResNet (Eq. 5), and their base class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dp_basicsr.archs.pretrained import initialise_randomly, load_backbone, without_weights
from dp_basicsr.errors import UserError, shorten
from dp_basicsr.registration import register

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from typing_extensions import Self

# ImageNet statistics of RGB in [0, 1], used by all of torchvision's classification networks.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# torchvision's ResNet family (all have conv1 ... layer4) and BasicSR's VGG names, with and without batch-norm.
# The common part of resnet, resnext and wide_resnet.
RESNET_TYPES = tuple(name for name in models.list_models(module=models) if "resn" in name)
_VGGS = [name for name in models.list_models(module=models) if name.startswith("vgg")]
# Those without batch-norm, such as the paper's, come first in messages.
VGG_TYPES = tuple(sorted(_VGGS, key=lambda name: (name.endswith("_bn"), name)))
MAX_NAMED = 40  # choices listed in one message
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


class AlwaysEval(nn.Module):
    """A module that stays in eval mode even if ``train()`` is called on it or its parent, as a loss must."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


class FrozenFeatures(AlwaysEval):
    """A network that returns the features of some layers and never learns: its weights have no gradients.

    Args:
        net: Returns the features of images, (N, 3, H, W), by layer name, or as a list in the order of ``layers``.
        layers: Names of the layers.
        use_input_norm: Normalise RGB in [0, 1] by ``mean`` and ``std``.
        range_norm: Inputs are in [-1, 1] and are scaled to [0, 1] first.
        batch_stats: Batch-norm uses the statistics of each batch, also in eval mode.
        mean, std: ImageNet's by default.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        layers: Iterable[str],
        use_input_norm: bool = True,
        range_norm: bool = False,
        batch_stats: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        for module in net.modules() if batch_stats else ():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        # What a file lacked is on the meta device; only what is used must be there.
        missing = [name for name, value in net.state_dict().items() if value.is_meta]
        if missing:
            raise UserError(f"weights of {type(self).__name__} lack {len(missing)} tensors: {', '.join(missing[:3])}")
        self.net, self.layers = net, tuple(layers)
        self.use_input_norm = use_input_norm
        self.range_norm = range_norm
        self.statistics = (tuple(mean), tuple(std))
        for name, values in zip(("mean", "std"), self.statistics, strict=True):
            self.register_buffer(name, _per_channel(values, torch.ones(())), persistent=False)
        # Now, and not by the caller: a loss that is built in a model's constructor must never train its networks.
        self.requires_grad_(False)
        self.train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenFeatures:
        """Move or cast; recompute the statistics, because ``double()`` would keep float32's rounding of 0.485."""
        super()._apply(fn, recurse)
        self.mean, self.std = (_per_channel(values, self.mean) for values in self.statistics)
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of ``x``, (N, 3, H, W), RGB in [0, 1] ([-1, 1] with ``range_norm``), by layer name.

        Images of another floating-point type than the network's are converted.
        """
        x = x.to(self.mean.dtype)
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.mean) / self.std
        features = self.net(x)
        return dict(features if isinstance(features, dict) else zip(self.layers, features, strict=True))


@register("arch")
class VGGFeatures(FrozenFeatures):
    """Features of a VGG network by BasicSR's layer names; ``conv5_4`` is before its activation (Eq. 4).

    Args:
        layers: Names such as ``conv5_4``, ``relu3_3``, ``pool2``.
        network: ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``, each also with ``_bn``.
        weights: ``imagenet``, a file of torchvision's names (also a training's checkpoint), or ``random`` (seeded).
        use_input_norm: See ``FrozenFeatures``.
        range_norm: See ``FrozenFeatures``.

    Raises:
        ValueError: The network or a layer is unknown, or the weights are not available or do not match.
    """

    def __init__(
        self,
        layers: Iterable[str],
        network: str = "vgg19",
        weights: str = "imagenet",
        use_input_norm: bool = True,
        range_norm: bool = False,
    ) -> None:
        check_names("VGG network", [network], VGG_TYPES)
        layers = tuple(layers)
        names = vgg_layers(network)
        check_names("layer", layers, names)
        net = load_features(network, weights, {f"features.{names.index(layer)}": layer for layer in layers})
        super().__init__(net, layers, use_input_norm, range_norm)
        self.min_size = 2 ** sum(isinstance(module, nn.MaxPool2d) for module in net.modules())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See ``FrozenFeatures``; raise a ValueError if the image is too small for the pooling."""
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"{self.layers} of a VGG needs images of at least {self.min_size} pixels per side, got {tuple(x.shape)}"
            )
        return super().forward(x)


@register("arch")
class ResNetFeatures(FrozenFeatures):
    """Features of a ResNet by torchvision's stage names: the last bottleneck's output after its ReLU (Eq. 5).

    Args:
        layers: ``layer1`` ... ``layer4`` (the paper's conv2_3, conv3_4, conv4_6 and conv5_3 for ResNet-50).
        network: Any member of torchvision's ResNet family, for example ``resnet50``, ``resnext50_32x4d``.
        weights: ``imagenet``, a file of torchvision's names (also a training's checkpoint), or ``random`` (seeded).
        use_input_norm: See ``FrozenFeatures``; the authors' released code does not normalise.
        range_norm: See ``FrozenFeatures``.
        batch_stats: Batch-norm uses the statistics of each batch instead of ImageNet's, as in the released code,
            which left the network in train mode. The running statistics are dropped, so nothing changes between
            calls. If false, batch-norm is a fixed scale and shift and is folded into the preceding convolution.

    Raises:
        ValueError: The network or a layer is unknown, or the weights are not available or do not match.
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
        check_names("ResNet network", [network], RESNET_TYPES)
        layers = tuple(layers)
        check_names("layer", layers, RESNET_STAGES)
        net = load_features(network, weights, {layer: layer for layer in layers})
        super().__init__(net, layers, use_input_norm, range_norm, batch_stats)
        self.folds = not batch_stats

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See ``FrozenFeatures``."""
        if not torch.compiler.is_compiling():
            # Whoever compiles a whole loss keeps batch-norm.
            self.fold()
        return super().forward(x)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Fold, then compile."""
        self.fold()
        super().compile(*args, **kwargs)

    # The weights that are made here must serve training, too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def fold(self) -> None:
        """Fold each batch-norm into the preceding convolution, once.

        Not in the constructor, because the products would keep float32's rounding after a cast to float64.
        """
        if not self.folds:
            return
        for module in self.net.modules():
            for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, conv_name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                    setattr(module, norm_name, nn.Identity().eval())
        self.folds = False


def vgg_layers(network: str) -> list[str]:
    """Return BasicSR's names of a VGG's layers: conv1_1, bn1_1, relu1_1 ... pool1; each block ends with a pool."""
    layers = without_weights(network).features
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    names, block, number = [], 1, 0
    for kind in (kinds[type(module)] for module in layers):
        number += kind == "conv"
        names.append(f"pool{block}" if kind == "pool" else f"{kind}{block}_{number}")
        if kind == "pool":
            block, number = block + 1, 0
    return names


def load_features(network: str, weights: str, nodes: Mapping[str, str]) -> nn.Module:
    """Return a VGG or ResNet with its weights, which returns the outputs of ``nodes`` by other names and ends there."""
    net = extract(load_backbone(network, weights), nodes)
    # Only now: what was cut off needs no weights.
    return initialise_randomly(net, network) if weights == "random" else net


def extract(net: nn.Module, nodes: Mapping[str, str]) -> nn.Module:
    """Return ``net`` up to the last of ``nodes`` (torchvision's name -> name of its output), in eval mode."""
    features = create_feature_extractor(net.eval(), dict(nodes), suppress_diff_warning=True)
    *_, output = features.graph.nodes
    for user in [user for node in output.all_input_nodes for user in node.users if user is not output]:
        # In place, an activation would overwrite the features before it, which are returned.
        if user.op == "call_module" and hasattr(module := features.get_submodule(user.target), "inplace"):
            module.inplace = False
        elif "inplace" in user.kwargs:
            user.update_kwarg("inplace", False)
    # Torchvision's has a second graph, of train mode, and cannot be pickled.
    return fx.GraphModule(features, features.graph)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def check_names(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Raise a UserError unless there are names, all of which are known."""
    if not names:
        raise UserError(f"expected at least one {what} out of {', '.join(known)}; got none")
    for name in names:
        if name not in known:
            raise UserError(f"{what}: expected one of {shorten(known, MAX_NAMED)}; got {name!r}")
