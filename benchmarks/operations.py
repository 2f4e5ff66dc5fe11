"""Count the operations of a step, measure this machine's rate, compute the limit, and profile a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.measure import Settings, Table, Work, in_turns
from benchmarks.step import BASICSR, OURS, model_of, step_of


class Counter(TorchDispatchMode):
    """Count floating point operations, two per multiply-add, and calls that are not just views.

    torch's FlopCounterMode also tracks modules, and its hooks fail on the step's ``autograd.grad``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop, self.calls = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.flop += count(*args, **(kwargs or {}), out_val=result) if count else 0
        aliases = [returned.alias_info for returned in func._schema.returns]
        self.calls += not any(alias is not None and not alias.is_write for alias in aliases)
        return result


def counted(work: Work) -> Counter:
    """Count the convolutions and matrix products in ``work``, nearly all of its operations."""
    with Counter() as counter:
        work()
    return counter


def passes(net: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Return a network's GFLOP on an image of ``shape``: forward, gradient to the image, gradient to the weights."""
    image = torch.rand(shape, device=next(net.parameters()).device)
    weights = [weight for weight in net.parameters() if weight.requires_grad]

    def gflop(*inputs: torch.Tensor) -> float:
        def work() -> None:
            image.requires_grad_(bool(inputs) and inputs[0] is image)
            output = net(image)
            values = output.values() if isinstance(output, dict) else [output]
            if inputs:
                torch.autograd.grad(sum(value.sum() for value in values), inputs)

        return counted(work).flop / 1e9

    forward = gflop()
    counts = {"forward": forward, "to the image": gflop(image) - forward}
    return counts | ({"to the weights": gflop(*weights) - forward} if weights else {})


def measure(settings: Settings) -> list[Table]:
    """Count the operations of both steps, and measure the shortest possible step, and where the time of ours goes."""
    model = model_of(OURS, settings.quick)
    low, high = (1, 3, 32, 32), (1, 3, 128, 128)
    networks = {
        "generator": passes(model.net_g, low),
        "discriminator": passes(model.net_d, high),
        "VGG19": passes(model.cri_perceptual.all_terms["vgg"].features, high),
        "ResNet-50": passes(model.cri_perceptual.all_terms["resnet"].features, high),
    }
    columns = ("forward", "to the image", "to the weights")
    rows = [(name, *(f"{counts[key]:.1f}" if key in counts else "" for key in columns))
            for name, counts in networks.items()]  # fmt: skip
    # D's batch-norm needs more than one image.
    steps = {name: counted(step_of(model_of(name, settings.quick), 2)).flop / 2e9 for name in (BASICSR, OURS)}
    title = "Operations, GFLOP per pair of 32 x 32 and 128 x 128 pixels, two per multiply-add"
    note = "; ".join(f"{name}: {total:.1f} GFLOP per pair" for name, total in steps.items())
    operations = Table(title, ("network", *columns), rows, {"networks": networks, "steps": steps}, note)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, batch = (256, 1) if settings.quick else (3072, 4)
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    conv = nn.Conv2d(64, 64, 3, padding=1).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(batch, 64, 128, 128, device=device).to(memory_format=torch.channels_last)
    works: dict[str, Work] = {"matrix product": lambda: left @ right, "3 x 3 convolution": lambda: conv(image)}
    with torch.no_grad():
        seconds = in_turns(works, 1 if settings.quick else 10)
        rates = {name: counted(work).flop / 1e9 / min(seconds[name]) for name, work in works.items()}
    rows = [(f"{name}, batch {pairs}", *(f"{total * pairs / rate:.2f} s" for rate in rates.values()))
            for name, total in steps.items() for pairs in settings.batches]  # fmt: skip
    header = ("a step at the rate of the", *(f"{name}, {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    limit = Table("The limit: operations over rate", header, rows, {"rates": rates})

    step = step_of(model, settings.batches[0])
    step()
    with profile() as profiler:  # records CUDA too where there is a GPU
        step()
    timed = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, timed))
    total = sum(getattr(event, timed) for event in events)
    rows = [(event.key, str(event.count), f"{getattr(event, timed) / total:.1%}") for event in events[:12]]
    title = f"Where a step goes: {OURS}, batch {settings.batches[0]}"
    return [operations, limit, Table(title, ("operator", "calls", "share"), rows)]
