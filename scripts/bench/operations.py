"""Count the operations of a step, measure this machine's rate, and compute the resulting limit."""

from __future__ import annotations

from dp_basicsr.training.cost import counted

import torch
from torch import nn

from scripts.bench.measure import Settings, Table, Work, in_turns
from scripts.bench.step import BASICSR, OURS, builders, step_of


def operations_of(work: Work) -> float:
    """Return the GFLOP of the convolutions and matrix products in ``work``, nearly all of its operations."""
    return counted(work).flop / 1e9


def passes(net: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Return a network's GFLOP on an image of ``shape``: forward, gradient to the image, gradient to the weights."""
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
    """Return every network of the step with the shape of its input."""
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
    """Count the GFLOP per pair of each network's passes and of both steps."""
    columns = ("forward", "to the image", "to the weights")
    found = {name: passes(*network) for name, network in networks(settings).items()}
    rows = [(name, *(f"{one[key]:.1f}" if key in one else "" for key in columns)) for name, one in found.items()]
    # D's batch-norm needs more than one image.
    steps = {name: operations_of(step_of(builders(settings.quick)[name](), 2)) / 2 for name in (BASICSR, OURS)}
    note = "; ".join(f"{name}: {total:.1f} GFLOP per pair" for name, total in steps.items())
    table = Table(
        "Operations, GFLOP per pair of 32 x 32 and 128 x 128 pixels, two per multiply-add",
        ("network", *columns), rows, {"networks": found, "steps": steps}, note,
    )  # fmt: skip
    return table, steps


def rates(settings: Settings) -> dict[str, float]:
    """Measure this machine's best GFLOP/s in a large float32 matrix product and in G's convolutions."""
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
    """Measure the operations, and the shortest possible step at this machine's rate."""
    table, steps = count(settings)
    found = rates(settings)
    rows = [
        (f"{name}, batch {batch}", *(f"{total * batch / rate:.2f} s" for rate in found.values()))
        for name, total in steps.items()
        for batch in settings.batches
    ]
    header = ("a step at the rate of the", *(f"{name}, {rate:.0f} GFLOP/s" for name, rate in found.items()))
    return [table, Table("The limit: operations over rate", header, rows, {"rates": found})]
