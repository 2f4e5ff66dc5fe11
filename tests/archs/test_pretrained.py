"""The search for pretrained weights, with local files and without a network connection."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

from dp_basicsr.archs import ResNetFeatures, VGGFeatures, pretrained
from dp_basicsr.archs.pretrained import find_weights, read_state_dict, weights_url, without_downloads
from dp_basicsr.errors import UserError

import pytest
import torch
from basicsr.utils import get_root_logger
from safetensors.torch import save_file
from torchvision import models

from scripts import download_pretrained_models


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file on a local server, under a name with its checksum."""
    folder, content = tmp_path / "server", b"weights of a network"
    folder.mkdir()
    file = folder / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/{file.name}"
    monkeypatch.setattr(pretrained, "weights_url", lambda network: url)
    yield file
    httpd.shutdown()


def test_weights_are_those_of_torchvision_when_the_paper_was_written() -> None:
    assert weights_url("vgg19").endswith("/vgg19-dcbb9e9d.pth")
    assert weights_url("resnet50").endswith("/resnet50-0676ba61.pth")
    with pytest.raises(UserError, match="vit_h_14 has no IMAGENET1K_V1 weights"):
        weights_url("vit_h_14")


def test_a_path_comes_first_then_the_project_s_folder_then_the_hub_s_cache(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").touch()
    assert find_weights("vgg19", str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"
    with pytest.raises(UserError, match="no such file"):
        find_weights("vgg19", "not/there.pth")
    cache = tmp_path / "torch_home/hub/checkpoints"
    cache.mkdir(parents=True)
    (cache / "vgg19-dcbb9e9d.pth").touch()
    assert find_weights("vgg19", "imagenet") == cache / "vgg19-dcbb9e9d.pth"
    project = Path("experiments/pretrained_models")
    project.mkdir(parents=True)
    (project / "vgg19-dcbb9e9d.pth").touch()
    assert find_weights("vgg19", "imagenet") == project / "vgg19-dcbb9e9d.pth"


def test_other_weights_under_the_name_of_imagenet_s_are_told(
    server: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vision#353."""
    monkeypatch.setattr(get_root_logger(), "propagate", True)
    caplog.set_level("WARNING", "basicsr")
    path = find_weights("resnet18", "imagenet")
    assert find_weights("resnet18", "imagenet") == path
    assert not caplog.messages
    path.write_bytes(b"of another network")
    assert find_weights("resnet18", "imagenet") == path
    assert f"{path} has other weights than torchvision's file of this name" in caplog.text
    # The first process reads the file; the others' warnings are not shown.
    monkeypatch.setattr(pretrained, "process_count", lambda: 2)
    monkeypatch.setattr(pretrained.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(pretrained, "is_original", pytest.fail)
    assert find_weights("resnet18", "imagenet") == path


def test_missing_weights_are_downloaded_into_the_cache_and_verified(server: Path, tmp_path: Path) -> None:
    path = find_weights("resnet18", "imagenet")
    assert path == tmp_path / "torch_home/hub/checkpoints" / server.name
    assert path.read_bytes() == server.read_bytes()
    path.unlink()
    server.write_bytes(b"not these weights")
    with pytest.raises(UserError, match=r"resnet18.*another file, as of a proxy.*pth.*experiments/pretrained"):
        find_weights("resnet18", "imagenet")
    assert list((tmp_path / "torch_home").rglob("*.pth")) == []


def test_the_command_downloads_and_verifies_once(
    server: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert download_pretrained_models.main(["resnet18"]) == 0
    assert Path("experiments/pretrained_models", server.name).read_bytes() == server.read_bytes()
    server.write_bytes(b"not these weights")
    assert download_pretrained_models.main(["convnext_tiny"]) == 0
    assert "already exists" in capsys.readouterr().out
    Path("experiments/pretrained_models", server.name).write_bytes(server.read_bytes())
    assert "has other weights than torchvision's" in refused(download_pretrained_models.main, ["resnet18"])
    assert server.name in refused(download_pretrained_models.main, ["resnet18", "--output", "other"])
    assert "vgg99" in refused(download_pretrained_models.main, ["vgg99"])


def test_a_trial_lets_no_library_download(tmp_path: Path) -> None:
    """Metrics of piq and torchmetrics fetch their weights by torch.hub, also in ``--check``."""
    url = "https://localhost/net.pth"
    with (
        without_downloads() as missing,
        pytest.raises(OSError, match="a trial does not download https://localhost/net.pth"),
    ):
        torch.hub.load_state_dict_from_url(url, str(tmp_path))
    assert missing == ["weights net.pth"], "--check names what the run will download"
    with pytest.raises(URLError):
        torch.hub.load_state_dict_from_url(url, str(tmp_path))


def test_offline_names_url_file_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/resnet50-0676ba61.pth"  # nothing listens there
    monkeypatch.setattr(pretrained, "weights_url", lambda network: url)
    with pytest.raises(UserError) as raised:
        ResNetFeatures(["layer3"])
    assert all(part in str(raised.value) for part in (url, "resnet50-0676ba61.pth", "experiments/pretrained_models"))


def without(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def test_a_checkpoint_without_its_head_is_accepted(tmp_path: Path) -> None:
    """Self-supervised ResNets have no fc and sometimes a projector; unused weights may be missing."""
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "all.pth")
    torch.save(without(state, "fc", "layer4") | {"projector.0.weight": torch.ones(2, 2)}, tmp_path / "body.pth")
    whole, body = (ResNetFeatures(["layer3"], "resnet18", str(tmp_path / name)) for name in ("all.pth", "body.pth"))
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(whole(x)["layer3"], body(x)["layer3"])


@pytest.mark.parametrize("head", [{}, {"head.fc.weight": torch.ones(2, 2)}])
def test_a_network_below_a_name_is_found_beside_its_head(head: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """mmpretrain#18: ``backbone.`` of OpenMMLab, whose ResNets have no fc."""
    torch.save(state := models.resnet18(weights=None).state_dict(), tmp_path / "bare.pth")
    below = {f"model.backbone.{name}": value for name, value in without(state, "fc").items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": below | head}, tmp_path / "mm.pth")
    # Of a file with its own names and a teacher's, its own count.
    teacher = {f"teacher.{name}": value for name, value in models.resnet18(weights=None).state_dict().items()}
    torch.save(state | teacher, tmp_path / "both.pth")
    x, names = torch.rand(1, 3, 32, 32), ("bare.pth", "mm.pth", "both.pth")
    bare, *others = (ResNetFeatures(["layer2"], "resnet18", str(tmp_path / name))(x)["layer2"] for name in names)
    assert all(torch.equal(bare, other) for other in others)


@pytest.mark.parametrize("average", ["", "ema", "state_dict_ema", "model_ema"])
def test_a_training_s_checkpoint_is_read_as_its_weights_the_average_first(average: str, tmp_path: Path) -> None:
    """torchvision's and timm's trainings, MoCo: beside the optimizer, with the prefix of DistributedDataParallel."""
    torch.save(state := models.resnet18(weights=None).state_dict(), tmp_path / "bare.pth")
    raw = {f"module.{name}": torch.zeros_like(value) if average else value for name, value in state.items()}
    entries = {average: state} if average else {}
    torch.save({"epoch": 3, "state_dict": raw, "optimizer": {"state": {}}, **entries}, tmp_path / "checkpoint.pth")
    ours, theirs = (
        ResNetFeatures(["layer2"], "resnet18", str(tmp_path / f"{name}.pth")) for name in ("bare", "checkpoint")
    )
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(ours(x)["layer2"], theirs(x)["layer2"])


def test_timm_s_file_of_a_hub_gives_the_features(tmp_path: Path) -> None:
    """pytorch-image-models#1703: safetensors, and other names in VGG's head."""
    with torch.device("meta"):
        shapes = models.vgg11(weights=None).features.state_dict()
    state = {f"features.{name}": torch.rand(value.shape) for name, value in shapes.items()}
    torch.save(state, tmp_path / "torchvision.pth")
    head = {"pre_logits.fc1.weight": torch.zeros(2, 2, 7, 7), "head.fc.weight": torch.zeros(3, 2)}
    save_file(state | head, tmp_path / "model.safetensors")
    files = (
        VGGFeatures(["conv2_1"], "vgg11", str(tmp_path / name)) for name in ("torchvision.pth", "model.safetensors")
    )
    ours, theirs = (features(torch.ones(1, 3, 32, 32))["conv2_1"] for features in files)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        ("resnet18", lambda state: without(state, "layer2.1.conv2"), r"tFeatures lack 1 tensors: layer2\.1\.conv2"),
        ("resnet34", lambda state: state, r"resnet18.*layer1\.2"),  # the weights of resnet18 would match in part
        ("resnet18", lambda state: state | {"conv1.weight": torch.ones(3)}, "does not contain the weights of resnet18"),
        ("resnet18", lambda state: {f"encoder_{name}": value for name, value in state.items()}, "encoder_"),
    ],
)
def test_weights_of_another_network_are_refused(network: str, change: Any, message: str, tmp_path: Path) -> None:
    torch.save(change(models.get_model(network, weights=None).state_dict()), tmp_path / "net.pth")
    with pytest.raises(UserError, match=message):
        ResNetFeatures(["layer2"], "resnet18", str(tmp_path / "net.pth"))


def test_a_tensor_is_no_state_dict() -> None:
    torch.save(torch.rand(3), "weights.pth")
    with pytest.raises(UserError, match="weights.pth"):
        read_state_dict(Path("weights.pth"))


def test_random_weights_are_seeded_logged_and_keep_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(get_root_logger(), "warning", said.append)
    before = torch.get_rng_state()
    first, second = (VGGFeatures(["conv2_1"], "vgg11", "random") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert ["RANDOM weights" in text for text in said] == [True, True]
