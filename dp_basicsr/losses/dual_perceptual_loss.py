"""Dual Perceptual Loss and its general form: any number of terms in proportion to a reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from dp_basicsr.archs.any_network_arch import build_features
from dp_basicsr.distributed.collectives import start_mean
from dp_basicsr.errors import UserError
from dp_basicsr.losses.functional import CRITERIA, Criterion, gradient_at, gradient_shares, refuse_range, weighted_total
from dp_basicsr.losses.terms import PAPER_MU, PerceptualTerm, RegisteredTerm, WeightRule
from dp_basicsr.registration import register

import torch
from torch import Tensor, nn

# The paper's best setting: phi = conv5_4 before activation, beta = conv4_6 (third row of Table 3).
PAPER_PHI: Mapping[str, float] = MappingProxyType({"conv5_4": 1.0})
PAPER_BETA: Mapping[str, float] = MappingProxyType({"layer3": 1.0})

Channels = Literal["repeat"] | Sequence[int] | Sequence[Sequence[int]] | None

REPEAT = [0, 0, 0]  # the triple of ``input_channels: repeat``
RULE = tuple(WeightRule.__dataclass_fields__)  # keys of a term that say how it is weighted
OTHER_LOSSES = ("pix", "gan", "ldl", "percep")  # losses of a step, whose names a term must not have


class DualPerceptualLoss(nn.Module):
    r"""Dual Perceptual Loss: L_DP = L_VGG + w * L_Res, w = detach(L_VGG / (mu * L_Res + eps)) (Eq. 8, 9).

    In general (Eq. 6) it is the sum of a reference and any number of terms, each with its local w. The terms' networks
    are frozen and hidden from ``parameters()``, ``state_dict()`` and ``requires_grad_``; ``to()`` moves them.

    Args:
        vgg_layer_weights: phi, with BasicSR's layer names; ``conv*`` is before the activation. Empty: no VGG term,
            if ``reference`` names another one.
        resnet_layer_weights: beta, ``layer1`` ... ``layer4``; empty: no ResNet term (Table 7, first row).
        mu: Divides the dynamic weight, so that w * L_Res is L_VGG / mu (Table 2: 0.5).
        eps: Keeps the denominator from being 0 (no value in the paper).
        dynamic_weighting: False: L_VGG + static_weight * L_Res (Table 7, second row).
        static_weight: See ``dynamic_weighting``.
        max_weight: Upper limit of w; None: no limit, as in the paper.
        sync_weight: w is the ratio of the terms' means over all processes, i.e. over the whole mini-batch; False: of
            each process's part, as in the released code. Without gradients nothing is synchronised.
        loss_weight: gamma of Eq. 2.
        criterion: Of features: ``l1`` (Eq. 4, 5: mean absolute difference), ``l2`` (mean squared difference),
            ``charbonnier`` (mean of sqrt(d^2 + 1e-12)) or ``fro`` (norm of the batch's difference, as in BasicSR).
        vgg_type: ``vgg11``, ``vgg13``, ``vgg16``, ``vgg19``, also with ``_bn``.
        resnet_type: Any member of torchvision's ResNet family.
        use_input_norm: Normalise by ImageNet's mean and standard deviation before VGG.
        resnet_use_input_norm: The same before ResNet; false in the released code.
        resnet_batch_stats: Batch-norm uses the statistics of each batch; true in the released code.
        range_norm: Images are in [-1, 1] instead of [0, 1].
        vgg_weights: ``imagenet``, a file of torchvision's names (also a training's checkpoint), or ``random``.
        resnet_weights: See ``vgg_weights``.
        extra_terms: Further terms, each a mapping with ``type``, a loss of BasicSR's LOSS_REGISTRY, and its options;
            or with ``network`` and ``layer_weights``, optionally ``weights``, ``use_input_norm`` and ``batch_stats``
            (see ``dp_basicsr.archs.any_network_arch.build_features``). Both accept ``name`` (default: the type or
            network), ``mu``, ``eps``, ``dynamic_weighting``, ``static_weight`` and ``max_weight``, which default to
            the arguments above.
        reference: Name of the term that the others are weighted relative to: ``vgg``, ``resnet`` or an extra term.
        input_channels: Input of the terms for images that do not have three channels: ``repeat`` (gray, three
            times), three indices (``[3, 2, 1]``), or several triples, over which a term's value is averaged.
        log_gradient_shares: ``backward`` adds each term's share of the gradient norm at the image to ``terms``.

    Attributes:
        terms: Values of the last call, detached 0-d tensors: ``l_<name>`` of each term, ``weight`` of the ResNet
            and ``weight_<name>`` of the others except the reference, ``share_<name>`` with ``log_gradient_shares``.
            Empty before the first call. ``loss_weight`` is not included.

    Raises:
        UserError: A name is unknown, a value is out of range, or weights are not available (a ValueError).
    """

    # Made while a program validates, its networks must be ones that training can use.
    @torch.inference_mode(False)
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
        extra_terms: Sequence[Mapping[str, Any]] = (),
        reference: str = "vgg",
        input_channels: Channels = None,
        log_gradient_shares: bool = False,
    ) -> None:
        # The same function tells the option check and the trial of --check which networks there will be.
        terms = dp_loss_terms(locals())
        super().__init__()
        if criterion not in CRITERIA:
            raise UserError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
        self.loss_weight = loss_weight
        self.sync_weight = sync_weight
        self.range_norm = range_norm
        self.input_channels = parse_channels(input_channels)
        self.log_gradient_shares = log_gradient_shares
        # A plain dict, so that the networks are not registered and stay out of parameters and checkpoints.
        self.all_terms: dict[str, PerceptualTerm | RegisteredTerm] = {}
        self.rules: dict[str, WeightRule] = {}
        for term in terms:
            name, kind, network = str(term.pop("name")), term.pop("type", None), term.pop("network", None)
            if name in OTHER_LOSSES:
                raise UserError(f"extra_terms: {name!r} is the name of another loss of a step; choose another `name`")
            if name in self.all_terms:
                raise UserError(f"extra_terms: the name {name!r} is already used; choose another `name`")
            self.rules[name] = WeightRule(**{key: term.pop(key) for key in RULE})
            if kind is not None:
                self.all_terms[name] = RegisteredTerm(kind, term, range_norm)
            else:
                layer_weights = term.pop("layer_weights", {})
                features = build_features(network, layer_weights, range_norm=range_norm, **term)
                self.all_terms[name] = PerceptualTerm(network, features, layer_weights, criterion)
        if reference not in self.all_terms:
            raise UserError(f"reference: expected one of {', '.join(self.all_terms)}, got {reference!r}")
        self.names = [reference, *(name for name in self.all_terms if name != reference)]
        self.terms: dict[str, Tensor] = {}
        self._has_seen_images = False

    def extra_repr(self) -> str:
        """Describe the terms, which are no submodules: their networks, layers and weights."""
        lines = [f"loss_weight={self.loss_weight:g}"]
        for name in self.names:
            term, rule = self.all_terms[name], self.rules[name]
            if isinstance(term, RegisteredTerm):
                text = f"({name}): {term.kind}"
            else:
                layers = ", ".join(f"{weight:g} {layer}" for layer, weight in term.layer_weights.items())
                text = f"({name}): {term.criterion} of {term.network}: {layers}"
            if name != self.names[0]:
                limit = "" if rule.max_weight is None else f", at most {rule.max_weight:g}"
                dynamic = f"{self.names[0]} / ({rule.mu:g} * {name} + {rule.eps:g}){limit}"
                text += f"; w = {dynamic if rule.dynamic_weighting else f'{rule.static_weight:g}'}"
            lines.append(text)
        return "\n".join(lines)

    def forward(self, x: Tensor, gt: Tensor) -> Tensor:
        """Compare images.

        Args:
            x: Super-resolved images, (N, 3, H, W), RGB in [0, 1] ([-1, 1] with ``range_norm``); with
                ``input_channels`` (N, C, H, W).
            gt: Originals, the same shape; no gradient flows to them.

        Returns:
            ``loss_weight * L_DP``, a 0-d tensor of at least float32.

        Raises:
            UserError: The shapes differ or are unsupported, or there are no images, or integers (a ValueError).
        """
        self._check_images(x, gt)
        values = [self._value(name, x, gt) for name in self.names]
        # Without gradients, as in a validation on rank 0 alone, the other processes would never answer.
        sync = torch.is_grad_enabled() and x.requires_grad
        weights = self._start_weights(torch.stack(values).detach(), sync)()
        return self.loss_weight * weighted_total(values[0], values[1:], weights)

    def backward(self, x: Tensor, gt: Tensor, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> Tensor:
        """Run backward from ``scale(forward(x, gt))``, with the memory of one term at a time.

        Args:
            x: Super-resolved images as in ``forward``: a network's output, whose weights then collect the gradient, or
                a leaf, which has it in ``x.grad``.
            gt: Originals as in ``forward``.
            scale: Linear; applied before the gradient is taken (a share of the mini-batch, fp16's scale).

        Returns:
            ``forward(x, gt)``, without a graph.
        """
        value, gradient = (parts["percep"] for parts in self.gradients(x, gt, scale))
        x.backward(gradient)
        return value

    def gradients(
        self,
        x: Tensor,
        gt: Tensor,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
        balanced: Collection[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return values and gradients at x by name: of the whole loss, or of each term for a ``Balancer``.

        Args:
            x: See ``backward``.
            gt: See ``backward``.
            scale: See ``backward``; of the gradients alone.
            balanced: None: the whole loss, as ``percep``. Otherwise all terms, those named here without their w.
        """
        self._check_images(x, gt)
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        # w scales a term's gradient and never changes its direction (Eq. 9 detaches it): each term's graph is used and
        # freed before the next one is built, and w is applied to the gradients at the image.
        for name in self.names:
            value = self._value(name, x, gt)
            values.append(value.detach())
            # All values are known before the last backward pass, which hides the processes' exchange.
            if len(values) == len(self.names):
                finish = self._start_weights(torch.stack(values), True, balanced or ())
            gradients.append(gradient_at(scale(self.loss_weight * value), x, name))
        weights = finish()
        if balanced is not None:
            factors = [torch.ones_like(values[0]), *weights]
            values = [self.loss_weight * factor * value for factor, value in zip(factors, values, strict=True)]
            gradients = [factor * gradient for factor, gradient in zip(factors, gradients, strict=True)]
            return dict(zip(self.names, values, strict=True)), dict(zip(self.names, gradients, strict=True))
        if self.log_gradient_shares:
            norms = torch.stack([gradient.norm() for gradient in gradients])
            shares = gradient_shares(norms, [torch.ones_like(norms[0]), *weights])
            self.terms |= {f"share_{name}": share for name, share in zip(self.names, shares, strict=True)}
        total = self.loss_weight * weighted_total(values[0], values[1:], weights)
        return {"percep": total}, {"percep": weighted_total(gradients[0], gradients[1:], weights)}

    def _value(self, name: str, x: Tensor, gt: Tensor) -> Tensor:
        """Return a term's value, 0-d: of the images, or the mean over the triples of ``input_channels``."""
        term = self.all_terms[name]
        if self.input_channels is None:
            return term(x, gt)  # type: ignore[no-any-return]
        values = []
        for triple in self.input_channels:
            # No index tensor, whose copy to the GPU would stall every step.
            pair = [torch.stack([images[:, number] for number in triple], dim=1) for images in (x, gt)]
            values.append(term(*pair))
        return torch.stack(values).mean()

    def _start_weights(self, local: Tensor, sync: bool, balanced: Collection[str] = ()) -> Callable[[], list[Tensor]]:
        """Start computing the weights of all terms but the reference, from this process's values, (n,).

        ``balanced`` terms have the weight 1. The returned function waits for the other processes' values, if they
        affect w, and stores values and weights in ``terms``.
        """
        self.terms = {f"l_{name}": value for name, value in zip(self.names, local, strict=True)}
        for name, term in self.all_terms.items():
            if isinstance(term, RegisteredTerm) and self.input_channels is None:
                self.terms |= {f"l_{name}{part}": value for part, value in term.parts.items()}
        weighted = [name for name in self.names[1:] if name not in balanced]
        is_dynamic = any(self.rules[name].dynamic_weighting for name in weighted)
        finish = start_mean(local) if self.sync_weight and sync and is_dynamic else lambda: local

        def weights() -> list[Tensor]:
            means = dict(zip(self.names, finish(), strict=True))
            reference = means.pop(self.names[0])
            rated = {name: self.rules[name].weight(reference, means[name]) for name in weighted}
            self.terms |= {"weight" if name == "resnet" else f"weight_{name}": w for name, w in rated.items()}
            return [rated.get(name, torch.ones_like(mean)) for name, mean in means.items()]

        return weights

    @property
    def l_vgg(self) -> Tensor | None:
        """L_VGG in ``terms``, or None."""
        return self.terms.get("l_vgg")

    @property
    def l_resnet(self) -> Tensor | None:
        """L_Res in ``terms``, or None."""
        return self.terms.get("l_resnet")

    @property
    def weight(self) -> Tensor | None:
        """The ResNet's w in ``terms``, or None."""
        return self.terms.get("weight")

    def _check_images(self, x: Tensor, gt: Tensor) -> None:
        got = f"got x {tuple(x.shape)} {x.dtype} and gt {tuple(gt.shape)} {gt.dtype}"
        triples = self.input_channels
        if x.shape != gt.shape or x.dim() != 4:
            raise UserError(f"DPLoss: expected x and gt of the same shape (N, 3, H, W), {got}")
        if not (x.is_floating_point() and gt.is_floating_point()):
            raise UserError(f"DPLoss: expected floating-point images, in [0, 1] or with range_norm in [-1, 1], {got}")
        if x.numel() == 0:
            raise UserError(f"DPLoss: expected at least one image and one pixel, {got}")
        if triples is None and x.size(1) != 3:
            way_out = "set input_channels: repeat (gray) or three channel indices ([3, 2, 1])"
            raise UserError(f"DPLoss: expected images of shape (N, 3, H, W), {got}; {way_out}")
        if triples == [REPEAT] and x.size(1) != 1:
            raise UserError(f"input_channels: repeat: expected gray images (1 channel), {got}")
        if triples is not None and max(map(max, triples)) >= x.size(1):
            raise UserError(f"input_channels: expected indices below {x.size(1)}, the images' channels, got {triples}")
        if self._has_seen_images or torch.compiler.is_compiling():
            return
        # Only in the first call, because it waits for the device.
        self._has_seen_images = True
        refuse_range("DPLoss", gt, self.range_norm, "set range_norm for [-1, 1]")

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DualPerceptualLoss:
        super()._apply(fn, recurse)
        # torch's to(), double() and cuda() all come here, and do not see the hidden terms.
        for term in self.all_terms.values():
            term._apply(fn, recurse)
        return self


@register("loss")
class DPLoss(DualPerceptualLoss):
    """``DualPerceptualLoss`` for BasicSR's ``perceptual_opt``."""

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the loss, and None in place of the style loss of BasicSR's PerceptualLoss."""
        return super().forward(x, gt), None

    def log_terms(self) -> dict[str, Tensor]:
        """Return ``terms`` by their names in the log: ``l_g_vgg``, ``l_g_resnet``, ``dp_weight`` ..."""
        return {f"l_g_{name[2:]}" if name.startswith("l_") else f"dp_{name}": value
                for name, value in self.terms.items()}  # fmt: skip


def dp_loss_terms(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the terms of a DPLoss, its VGG and ResNet first, as complete entries of ``extra_terms``.

    Of ``options``, the loss's arguments, missing ones have their defaults, and others are ignored. An entry of neither
    ``type`` nor ``network``, or of both, is a UserError.
    """
    given = {name: value.default for name, value in inspect.signature(DualPerceptualLoss).parameters.items()}
    given |= options
    terms = []
    if given["vgg_layer_weights"] or given["reference"] == "vgg":
        terms.append({"name": "vgg", "network": given["vgg_type"], "layer_weights": given["vgg_layer_weights"],
                      "weights": given["vgg_weights"], "use_input_norm": given["use_input_norm"]})  # fmt: skip
    if given["resnet_layer_weights"]:
        terms.append({"name": "resnet", "network": given["resnet_type"], "layer_weights": given["resnet_layer_weights"],
                      "weights": given["resnet_weights"], "use_input_norm": given["resnet_use_input_norm"],
                      "batch_stats": given["resnet_batch_stats"]})  # fmt: skip
    for entry in given["extra_terms"]:
        kind, network = entry.get("type"), entry.get("network")
        if (kind is None) == (network is None):
            text = f"expected `type` or `network` in each entry, got {kind!r} and {network!r}"
            raise UserError(f"extra_terms: {text}")
        terms.append({"name": kind or network} | dict(entry))
    return [{key: given[key] for key in RULE} | term for term in terms]


def parse_channels(channels: Any) -> list[list[int]] | None:
    """Return ``input_channels`` (``repeat``, indices or triples of them, >= 0) as triples; anything else is refused."""
    if channels is None:
        return None
    triples: list[Any] = list(channels) if isinstance(channels, Sequence) else [channels]
    if channels == "repeat":
        triples = [REPEAT]
    elif all(isinstance(index, int) for index in triples):
        triples = [triples]
    for triple in triples:
        is_triple = isinstance(triple, Sequence) and len(triple) == 3
        if not is_triple or not all(type(index) is int and index >= 0 for index in triple):
            text = f"expected repeat, or triples of indices such as [3, 2, 1], got {channels!r}"
            raise UserError(f"input_channels: {text}")
    return [list(triple) for triple in triples]
