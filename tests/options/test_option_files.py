"""Every shipped option file runs, and every key in it is read by some code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dp_basicsr import test, train
from dp_basicsr.archs import RRDBNetDP
from dp_basicsr.metrics import lpips_metric, scores
from dp_basicsr.options import read_options, schema
from dp_basicsr.runs import log as progress

import pytest
import torch
from basicsr.archs import build_network

OPTIONS = Path(__file__).resolve().parents[2] / "options"
FILES = sorted(path.name for path in OPTIONS.glob("*.yml"))


class Watched(dict):
    """A dict that records which of its keys are looked up, by their path in the file, also in copies and by ``**``.

    Iterating over all items does not count as a look-up, otherwise unused keys would count as read.
    """

    def __init__(self, content: dict[str, Any], address: str, seen: set[str]) -> None:
        super().__init__({key: watch(value, f"{address}{key}:", seen) for key, value in content.items()})
        self.address, self.seen = address, seen

    def __getitem__(self, key: Any) -> Any:
        self.seen.add(f"{self.address}{key}")
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.seen.add(f"{self.address}{key}")
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.seen.add(f"{self.address}{key}")
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[Any]:  # overridden, so that ** and dict() go through __getitem__
        return super().__iter__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        return Watched(dict(super().items()), self.address, self.seen)

    def copy(self) -> Watched:
        return self.__deepcopy__({})


def watch(value: Any, address: str, seen: set[str]) -> Any:
    return Watched(value, address, seen) if isinstance(value, dict) else value


ADDRESSES = {
    schema.OptionFile: "", schema.Train: "train:", schema.Val: "val:", schema.Logger: "logger:", schema.Paths: "path:",
    schema.Wandb: "logger:wandb:", schema.DistParams: "dist_params:",
}  # fmt: skip


def watch_sections(file: str, seen: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the attributes that are read of typed options, and the keys that are read of their mappings."""
    sets = {dataset["name"]: key for key, dataset in read_options(OPTIONS / file)["datasets"].items()}
    get, as_dict = schema.Section.__getattribute__, schema.Section.as_dict
    copying = [False]

    def address(section: schema.Section) -> str:
        if isinstance(section, schema.Dataset):
            return f"datasets:{sets[get(section, 'name')]}:"
        return ADDRESSES.get(type(section), "elsewhere:")

    def watched_get(section: schema.Section, name: str) -> Any:
        if not copying[0] and name in type(section).__pydantic_fields__:
            seen.add(f"{address(section)}{name}")
        return get(section, name)

    def watched_dict(section: schema.Section) -> dict[str, Any]:
        copying[0], outer = True, copying[0]
        content = as_dict(section)
        copying[0] = outer
        return content if outer else Watched(content, address(section), seen)

    monkeypatch.setattr(schema.Section, "__getattribute__", watched_get)
    monkeypatch.setattr(schema.Section, "as_dict", watched_dict)


def leaves(opt: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in opt.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}:")
        else:
            yield f"{prefix}{key}"


SMALL_TRAINING = ["train:total_iter=1", "val:val_freq=1", "logger:print_freq=1", "datasets:train:num_worker_per_gpu=0",
                  "datasets:train:persistent_workers=false", "datasets:train:batch_size_per_gpu=1",
                  "datasets:train:io_backend:type=disk"]  # fmt: skip
RANDOM = ["train:perceptual_opt:vgg_weights=random", "train:perceptual_opt:resnet_weights=random"]


def overrides(file: str, pairs: Path) -> list[str]:
    """Small networks, a start from a small checkpoint, one small step, and four small pairs as every dataset."""
    opt = read_options(OPTIONS / file)
    data = [f"datasets:{name}:dataroot_gt={pairs / 'GT'}" for name in opt["datasets"]]
    data += [f"datasets:{name}:dataroot_lq={pairs / 'LRbicx4'}" for name in opt["datasets"]]
    if opt["network_g"]["type"] == "FromFile":
        torch.save(RRDBNetDP(num_feat=8, num_block=1).state_dict(), "start.pth")
        network = ["network_g:path=start.pth"]
    else:
        small = {"num_feat": 8, "num_conv" if opt["network_g"]["type"] == "CompactDP" else "num_block": 1}
        state = build_network(opt["network_g"] | small).state_dict()
        torch.save({"params": state, "params_ema": state}, "start.pth")
        network = [*(f"network_g:{key}={value}" for key, value in small.items()), "path:pretrain_network_g=start.pth"]
    training = SMALL_TRAINING if "train" in opt else []
    random = RANDOM if "perceptual_opt" in opt.get("train", {}) else []
    return [*data, *network, *training, *random]


@pytest.mark.parametrize("file", FILES)
def test_every_key_is_read(file: str, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the real program in small: train one step and validate, or test; every key of the file is looked up."""
    seen: set[str] = set()
    watch_sections(file, seen, monkeypatch)
    monkeypatch.setattr(progress, "dict2str", lambda opt: "")  # prints every key
    monkeypatch.setattr(lpips_metric, "why_not", lambda *given, **more: None)
    monkeypatch.setattr(lpips_metric, "lpips_network", lambda *given: lambda x, y: (x - y).abs().mean())
    monkeypatch.setattr(scores, "why_not", lambda *given, **more: None)
    command_line = ["-opt", str(OPTIONS / file), "--force_yml", *overrides(file, pairs)]
    sets = read_options(OPTIONS / file)["datasets"]
    if "train" in sets:
        train.main(command_line)
    if any(name.startswith("test") for name in sets):
        test.main(command_line)
    only_with_wandb = {"logger:wandb:resume_id"}  # read by log.tensorboard
    assert set(leaves(read_options(OPTIONS / file))) - seen - only_with_wandb == set()


def test_a_key_that_no_code_reads_is_found() -> None:
    """The test above can fail."""
    opt = Watched({"a": {"b": 1, "use_shuffle": True}}, "", seen := set())
    assert list(opt["a"].copy().items()) == [("b", 1), ("use_shuffle", True)]
    assert opt["a"].get("b") == 1
    assert set(leaves(opt)) - seen == {"a:use_shuffle"}
    assert dict(**opt["a"]) == {"b": 1, "use_shuffle": True}
    assert set(leaves(opt)) - seen == set()


@pytest.mark.parametrize("file", ["train_esrgan_dp.yml", "train_esrgan_dp_released.yml", "train_srgan_dp.yml"])
def test_the_schedule_is_the_paper_s(file: str) -> None:
    opt = read_options(OPTIONS / file)
    train, data = opt["train"], opt["datasets"]["train"]
    for adam in (train["optim_g"], train["optim_d"]):
        assert (adam["lr"], adam["betas"]) == (1e-4, [0.9, 0.99])
    assert (train["total_iter"], train["warmup_iter"]) == (400_000, -1)
    assert train["scheduler"]["milestones"] == [50_000, 100_000, 200_000, 300_000]
    assert train["scheduler"]["gamma"] == 0.5
    assert (data["batch_size_per_gpu"], data["gt_size"]) == (16, 128)
    weights = [train[f"{name}_opt"]["loss_weight"] for name in ("pixel", "gan", "perceptual")]
    assert weights == [1e-2, 5e-3, 1.0], "lambda, eta, and the Dual Perceptual Loss itself"
    sets = [dataset["name"] for key, dataset in opt["datasets"].items() if key.startswith("val")]
    assert sets == ["Set5", "Set14", "BSD100", "Urban100"]


def test_the_two_readings_differ_where_the_released_code_does() -> None:
    paper, released = (
        read_options(OPTIONS / file)["train"]["perceptual_opt"]
        for file in ("train_esrgan_dp.yml", "train_esrgan_dp_released.yml")
    )
    different = {key: released[key] for key in paper if released[key] != paper[key]}
    assert different.pop("sync_weight") is False
    assert different == {
        "resnet_layer_weights": {"layer1": 1, "layer2": 1, "layer3": 1},
        "resnet_use_input_norm": False,
        "resnet_batch_stats": True,
    }
