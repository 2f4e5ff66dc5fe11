"""What a step has to compute, how fast this machine multiplies matrices, and the limit that follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from scripts.bench.measure import Settings, Table, Work, in_turns
from scripts.bench.step import BASICSR, OURS, builders, step_of


class Counter(TorchDispatchMode):
    """Counts operations, two for a multiply-add, of all convolutions and matrix products that run inside.

    torch's FlopCounterMode also tells modules apart, for which its hooks cannot stand the step's ``autograd.grad``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and add what it costs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **kwargs, out_val=result) if count else 0
        return result


def operations_of(work: Work) -> float:
    """GFLOP of ``work``: convolutions and matrix products, which are nearly all there is."""
    with Counter() as counter:
        work()
    return counter.total / 1e9


def passes(net: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """GFLOP of a network's forward pass on an image of ``shape``, of its gradient to the image, and to the weights."""
    image = torch.rand(shape, device=next(net.parameters()).device)
    weights = [weight for weight in net.parameters() if weight.requires_grad]

    def total(x: torch.Tensor) -> torch.Tensor:
        output = net(x)
        return sum(one.sum() for one in output.values()) if isinstance(output, dict) else output.sum()

    def forward() -> None:
        with torch.no_grad():
            total(image)

    alone = operations_of(forward)
    found = {"forward": alone}
    for name, inputs in (("to the image", [image.requires_grad_()]), ("to the weights", weights)):
        if not inputs:
            continue
        wanted = list(inputs)
        image.requires_grad_(name == "to the image")
        whole = operations_of(lambda wanted=wanted: torch.autograd.grad(total(image), wanted))  # type: ignore[misc]
        found[name] = whole - alone
    return found


def networks(settings: Settings) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Every network of the step, and what one image of it is."""
    model = builders(settings.quick)[OURS]()
    low, high = (1, 3, 32, 32), (1, 3, 128, 128)
    loss = model.cri_perceptual
    return {
        "generator": (model.net_g, low),
        "discriminator": (model.net_d, high),
        "VGG19": (loss.reference.features, high),
        "ResNet-50": (loss.weighted["resnet"].features, high),
    }


def count(settings: Settings) -> tuple[Table, dict[str, float]]:
    """What each network's passes take, and what both steps execute: GFLOP for a pair."""
    columns = ("forward", "to the image", "to the weights")
    found = {name: passes(*network) for name, network in networks(settings).items()}
    rows = [(name, *(f"{one[key]:.1f}" if key in one else "" for key in columns)) for name, one in found.items()]
    # D's batch-norm needs more than one image.
    steps = {name: operations_of(step_of(builders(settings.quick)[name](), 2)) / 2 for name in (BASICSR, OURS)}
    note = "; ".join(f"{name}: {total:.1f} GFLOP a pair" for name, total in steps.items())
    table = Table(
        "Operations, GFLOP for a pair of 32 x 32 and 128 x 128 pixels, two for a multiply-add",
        ("network", *columns), rows, {"networks": found, "steps": steps}, note,
    )  # fmt: skip
    return table, steps


def rates(settings: Settings) -> dict[str, float]:
    """GFLOP per second of this machine, the best of several: a large float32 matrix product, and G's convolutions."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, batch = (256, 1) if settings.quick else (3072, 4)
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    conv = nn.Conv2d(64, 64, 3, padding=1).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(batch, 64, 128, 128, device=device).to(memory_format=torch.channels_last)
    works: dict[str, Work] = {"matrix product": lambda: left @ right, "3 x 3 convolution": lambda: conv(image)}
    with torch.no_grad():
        seconds = in_turns(works, 1 if settings.quick else 10)
        return {name: operations_of(work) / min(seconds[name]) for name, work in works.items()}


def measure(settings: Settings) -> list[Table]:
    """The operations, the machine's rate, and the seconds that a step takes at least."""
    table, steps = count(settings)
    found = rates(settings)
    rows = [
        (f"{name}, batch {batch}", *(f"{total * batch / rate:.2f} s" for rate in found.values()))
        for name, total in steps.items()
        for batch in settings.batches
    ]
    header = ("a step at the rate of the", *(f"{name}, {rate:.0f} GFLOP/s" for name, rate in found.items()))
    return [table, Table("The limit: operations over rate", header, rows, {"rates": found})]
