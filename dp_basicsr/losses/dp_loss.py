"""Dual Perceptual Loss as a BasicSR loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

from dp_basicsr.archs.perceptual_arch import RESNET_TYPES, VGG_TYPES, FrozenFeatures, ResNetFeatures, VGGFeatures
from dp_basicsr.distributed.collectives import start_mean
from dp_basicsr.errors import UserError
from dp_basicsr.losses.functional import Criterion, dynamic_weight, feature_distance, weighted_total

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

# The paper's best setting: phi = conv5_4 before activation, beta = conv4_6 (third row of Table 3), mu = 0.5 (Table 2).
PAPER_PHI: Mapping[str, float] = MappingProxyType({"conv5_4": 1.0})
PAPER_BETA: Mapping[str, float] = MappingProxyType({"layer3": 1.0})
PAPER_MU = 0.5


class PerceptualTerm(nn.Module):
    """Distance of two images through one frozen network (Eq. 4, 5).

    Args:
        features: The network; its layers are those of ``layer_weights``.
        layer_weights: Weight of each layer.
        criterion: ``l1`` or ``l2``.
    """

    def __init__(self, features: FrozenFeatures, layer_weights: Mapping[str, float], criterion: Criterion) -> None:
        super().__init__()
        self.features = features
        self.layer_weights = dict(layer_weights)
        self.criterion = criterion

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """0-d distance of ``x`` and ``gt``, both (N, 3, H, W); the gradient flows to ``x`` alone."""
        with torch.no_grad():
            gt_features = self.features(gt)
        return feature_distance(self.features(x), gt_features, self.layer_weights, self.criterion)


class WeightedTerm(PerceptualTerm):
    """A further perceptual term of Eq. 6, with the rule that gives its weight beside the reference.

    Args:
        mu: Divides the dynamic weight (Eq. 9), > 0.
        eps: Against a zero denominator, >= 0 (0 is the released code: identical images then give NaN).
        dynamic_weighting: False: the weight is ``static_weight`` (Table 7, second row).
        static_weight: Used without dynamic weighting.
        max_weight: The largest dynamic weight there may be, > 0; None: no limit, as in the paper.
        term: Of :class:`PerceptualTerm`.
    """

    def __init__(
        self,
        *term: Any,
        mu: float,
        eps: float,
        dynamic_weighting: bool = True,
        static_weight: float = 1.0,
        max_weight: float | None = None,
    ) -> None:
        super().__init__(*term)
        if not (math.isfinite(mu) and mu > 0):
            raise UserError(
                f"mu: expected a number > 0 (the paper's is {PAPER_MU}; mu divides L_Res's weight), got {mu!r}"
            )
        if not (math.isfinite(eps) and eps >= 0):
            raise UserError(f"eps: expected a tiny number >= 0, got {eps!r}")
        if max_weight is not None and not max_weight > 0:
            raise UserError(f"max_weight: expected a number > 0, or ~ for no limit, got {max_weight!r}")
        self.mu = mu
        self.eps = eps
        self.dynamic_weighting = dynamic_weighting
        self.static_weight = static_weight
        self.max_weight = max_weight

    def weight(self, reference: Tensor, term: Tensor) -> Tensor:
        """The weight w of this term, 0-d, without gradient."""
        if self.dynamic_weighting:
            return dynamic_weight(reference, term, self.mu, self.eps, self.max_weight)
        return torch.full_like(term, self.static_weight)


@LOSS_REGISTRY.register()
class DPLoss(nn.Module):
    r"""Dual Perceptual Loss: L_DP = L_VGG + w * L_Res, with w = detach(L_VGG / (mu * L_Res + eps)) (Eq. 8, 9).

    It takes the place of any perceptual loss in BasicSR: ``forward(x, gt)`` returns ``(l_dp, None)``. In general
    (Eq. 6) it is the sum of the VGG term, the reference, and any number of weighted terms: ``extra_networks`` adds to
    the one of Eq. 8.

    Args:
        vgg_layer_weights: phi, BasicSR's layer names; ``conv*`` is before the activation.
        resnet_layer_weights: beta, ``layer1`` ... ``layer4``; empty leaves the ResNet out (Table 7, first row).
        mu: Divides the dynamic weight, so that w * L_Res is L_VGG / mu (Table 2: 0.5).
        eps: Against a zero denominator (the paper gives no figure).
        dynamic_weighting: False: L_VGG + static_weight * L_Res (Table 7, second row).
        static_weight: See ``dynamic_weighting``.
        max_weight: The largest w there may be; None: no limit, as in the paper.
        sync_weight: w is the ratio of the terms' means over all processes, that is of the whole mini-batch; False: each
            process has the ratio of its own part, as the released code.
        loss_weight: gamma of Eq. 2.
        criterion: ``l1`` (Eq. 4, 5: mean absolute difference) or ``l2`` (mean squared difference).
        vgg_type: ``vgg11``, ``vgg13``, ``vgg16``, ``vgg19``, also with ``_bn``.
        resnet_type: Any of torchvision's ResNet family.
        use_input_norm: ImageNet's mean and standard deviation before VGG.
        resnet_use_input_norm: The same before ResNet; false in the released code.
        resnet_batch_stats: Batch-norm on the statistics of each batch; true in the released code.
        range_norm: Inputs are in [-1, 1] in place of [0, 1].
        vgg_weights: ``imagenet``, the path of a torchvision state_dict, or ``random``.
        resnet_weights: As ``vgg_weights``.
        extra_networks: Further terms, each a mapping with ``network`` (a VGG or ResNet type) and ``layer_weights``, and
            optionally ``name``, ``weights``, ``use_input_norm``, ``batch_stats`` (ResNet), ``mu``, ``eps``,
            ``dynamic_weighting``, ``static_weight``, ``max_weight``, which default to the arguments above.

    Attributes:
        terms: Of the last call, detached 0-d tensors: ``l_vgg``, ``l_resnet``, ``weight``, and ``l_<name>``,
            ``weight_<name>`` of extra networks. Empty before the first call. ``loss_weight`` is not in them.

    Raises:
        UserError: An unknown name, a value out of range, or weights that cannot be had (a ValueError).
    """

    def __init__(
        self,
        vgg_layer_weights: Mapping[str, float] = PAPER_PHI,
        resnet_layer_weights: Mapping[str, float] = PAPER_BETA,
        mu: float = PAPER_MU,
        eps: float = 1e-8,
        dynamic_weighting: bool = True,
        static_weight: float = 1.0,
        max_weight: float | None = None,
        sync_weight: bool = True,
        loss_weight: float = 1.0,
        criterion: Criterion = "l1",
        vgg_type: str = "vgg19",
        resnet_type: str = "resnet50",
        use_input_norm: bool = True,
        resnet_use_input_norm: bool = True,
        resnet_batch_stats: bool = False,
        range_norm: bool = False,
        vgg_weights: str = "imagenet",
        resnet_weights: str = "imagenet",
        extra_networks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        if criterion not in ("l1", "l2"):
            raise UserError(f"criterion: expected l1 or l2, got {criterion!r}")
        self.loss_weight = loss_weight
        self.sync_weight = sync_weight
        self.range_norm = range_norm
        self.criterion: Criterion = criterion
        vgg = VGGFeatures(vgg_layer_weights, vgg_type, vgg_weights, use_input_norm, range_norm)
        self.reference = PerceptualTerm(vgg, vgg_layer_weights, criterion)
        rule: dict[str, Any] = {
            "mu": mu,
            "eps": eps,
            "dynamic_weighting": dynamic_weighting,
            "static_weight": static_weight,
            "max_weight": max_weight,
        }
        weighted: Any = nn.ModuleDict()
        self.weighted: MutableMapping[str, WeightedTerm] = weighted
        if resnet_layer_weights:
            norms = {"use_input_norm": resnet_use_input_norm, "batch_stats": resnet_batch_stats}
            self._add_term("resnet", resnet_type, resnet_layer_weights, resnet_weights, **norms, **rule)
        for extra in extra_networks:
            options = {**rule, **extra}
            self._add_term(options.pop("name", options["network"]), **options)
        self.terms: dict[str, Tensor] = {}

    def _add_term(
        self,
        name: str,
        network: str,
        layer_weights: Mapping[str, float],
        weights: str = "imagenet",
        *,
        use_input_norm: bool = True,
        batch_stats: bool = False,
        **rule: Any,
    ) -> None:
        """Add a weighted term under its own name."""
        if name in self.weighted or name == "vgg":
            raise UserError(f"extra_networks: the name {name!r} is taken; give this one another `name`")
        features: FrozenFeatures
        if network in RESNET_TYPES:
            features = ResNetFeatures(layer_weights, network, weights, use_input_norm, self.range_norm, batch_stats)
        elif network in VGG_TYPES:
            features = VGGFeatures(layer_weights, network, weights, use_input_norm, self.range_norm)
        else:
            raise UserError(f"network: expected one of {', '.join(VGG_TYPES + RESNET_TYPES)}; got {network!r}")
        self.weighted[name] = WeightedTerm(features, layer_weights, self.criterion, **rule)

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:
        """Compare images.

        Args:
            x: Super-resolved images, (N, 3, H, W), RGB in [0, 1] ([-1, 1] with ``range_norm``).
            gt: Originals, the same shape; no gradient flows to them.

        Returns:
            ``(loss_weight * l_dp, None)``: a 0-d tensor of at least float32, and BasicSR's place for a style loss.

        Raises:
            ValueError: Shapes that differ or are not (N, 3, H, W).
        """
        _check_images(x, gt)
        l_vgg = self.reference(x, gt)
        others = [term(x, gt) for term in self.weighted.values()]
        own = torch.stack([l_vgg, *others]).detach()
        weights = self._weigh(own, self._start_means(own)())
        return self.loss_weight * weighted_total(l_vgg, others, weights), None

    def backward(self, x: Tensor, gt: Tensor, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> Tensor:
        """Add the gradient of ``scale(forward(x, gt)[0])`` to ``x.grad``, with the memory of one network at a time.

        w changes the size of a term's gradient and never its direction. So each network's graph is gone through, and
        freed, before the next one's is built, and w meets the finished gradients at the image. Meanwhile the processes
        average the terms: that takes no time of its own.

        Args:
            x: Super-resolved images as in :meth:`forward`, a leaf that requires a gradient.
            gt: Originals as in :meth:`forward`.
            scale: Linear; applied before the gradient is taken (a share of the mini-batch, fp16's scale).

        Returns:
            ``forward(x, gt)[0]``, without a graph.
        """
        _check_images(x, gt)
        terms: list[PerceptualTerm] = [self.reference, *self.weighted.values()]
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for term in terms:
            value = term(x, gt)
            values.append(value.detach())
            if len(values) == len(terms):
                own = torch.stack(values)
                finish = self._start_means(own)
            gradients += torch.autograd.grad(scale(self.loss_weight * value), x)
        weights = self._weigh(own, finish())
        gradient = weighted_total(gradients[0], gradients[1:], weights)
        x.grad = gradient if x.grad is None else x.grad + gradient
        return self.loss_weight * weighted_total(values[0], values[1:], weights)

    def _start_means(self, own: Tensor) -> Callable[[], Tensor]:
        """Begin to average this process's terms over the processes, where that makes a difference to w."""
        needed = self.sync_weight and any(term.dynamic_weighting for term in self.weighted.values())
        return start_mean(own) if needed else lambda: own

    def _weigh(self, own: Tensor, means: Tensor) -> list[Tensor]:
        """The weights by the terms' means (L_VGG first); they and this process's terms are noted in ``terms``."""
        self.terms = {"l_vgg": own[0]}
        weights = []
        for (name, term), value, mean in zip(self.weighted.items(), own[1:], means[1:], strict=True):
            weights.append(term.weight(means[0], mean))
            self.terms[f"l_{name}"] = value
            self.terms["weight" if name == "resnet" else f"weight_{name}"] = weights[-1]
        return weights

    @property
    def l_vgg(self) -> Tensor | None:
        """L_VGG of the last call, detached, 0-d; None before it."""
        return self.terms.get("l_vgg")

    @property
    def l_resnet(self) -> Tensor | None:
        """L_Res of the last call, detached, 0-d; None before it or without a ResNet."""
        return self.terms.get("l_resnet")

    @property
    def weight(self) -> Tensor | None:
        """The weight w of the last call, detached, 0-d; None before it or without a ResNet."""
        return self.terms.get("weight")


def _check_images(x: Tensor, gt: Tensor) -> None:
    if x.shape != gt.shape or x.dim() != 4 or x.size(1) != 3:
        raise ValueError(
            f"DPLoss: expected x and gt of one shape (N, 3, H, W), got x {tuple(x.shape)} and gt {tuple(gt.shape)}"
        )
