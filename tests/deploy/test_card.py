"""What an export says about itself: its provenance, its card, and the entry for OpenModelDB."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_basicsr import __version__
from dp_basicsr.archs import load_network
from dp_basicsr.deploy.card import write_card
from dp_basicsr.deploy.export import describe, export_network
from dp_basicsr.deploy.openmodeldb import write_entry
from dp_basicsr.deploy.provenance import fingerprint, trace
from dp_basicsr.options import USED_OPTIONS
from dp_basicsr.utils.input_size import InputSize

import pytest
import torch
import yaml
from safetensors.torch import save_file

from scripts import export_model
from tests.support.images import write_noise
from tests.support.networks import network_file

# Name -> type, whether it is required, and what else must hold.
FIELDS: dict[str, tuple[type | tuple[type, ...], bool, Any]] = {
    "name": (str, True, len),
    "author": ((str, list), True, len),
    "license": (str, False, len),
    "tags": (list, True, len),
    "description": (str, True, lambda text: text == text.strip()),
    "date": (str, True, re.compile(r"\d{4}-(0[1-9]|1[012])-(0[1-9]|[12]\d|3[01])").fullmatch),
    "architecture": (str, True, re.compile(r"[a-z0-9]+(?:-[a-z0-9]+|[+])*").fullmatch),
    "size": (list, False, lambda sizes: all(isinstance(size, str) and size for size in sizes)),
    "scale": (int, True, lambda scale: 1 <= scale <= 16),
    "inputChannels": (int, True, lambda count: 1 <= count <= 4),
    "outputChannels": (int, True, lambda count: 1 <= count <= 4),
    "resources": (list, True, len),
    "dataset": (str, False, len),
    "datasetSize": (int, False, lambda count: count >= 1),
    "trainingIterations": (int, False, lambda count: count >= 1),
    "trainingBatchSize": (int, False, lambda count: count >= 1),
    "trainingHRSize": (int, False, lambda count: count >= 1),
    "images": (list, True, lambda images: True),
}
RESOURCE = {"type": ("pth", "onnx", "safetensors"), "platform": ("pytorch", "onnx")}


def check(entry: dict[str, Any]) -> None:
    """Hold an entry against FIELDS, as OpenModelDB's validateModel does."""
    assert entry.keys() <= FIELDS.keys()
    for name, (kind, is_required, condition) in FIELDS.items():
        value = entry.get(name)
        if value is None:
            assert not is_required, name
            continue
        assert isinstance(value, kind), name
        assert not isinstance(value, bool), name
        assert condition(value), name
    for resource in entry["resources"]:
        assert all(resource[name] in values for name, values in RESOURCE.items())
        assert resource["size"] >= 1
        assert re.fullmatch(r"[0-9a-f]{64}", resource["sha256"])
        assert all(url.startswith("https://") for url in resource["urls"])
        assert resource["urls"]


@pytest.fixture
def trained() -> Path:
    """The network of a training run at iteration 400, in its folder with option file and log; its data."""
    run, data = Path("experiments/mine").absolute(), Path("HR").absolute()
    (run / "models").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        write_noise(data / name, 4, 4)
    options = {
        "name": "mine", "model_type": "ESRGANDPModel", "scale": 4, "num_gpu": 0,
        "datasets": {
            "train": {"name": "DIV2K", "dataroot_gt": str(data), "gt_size": 128, "batch_size_per_gpu": 16},
            "val": {"name": "Set5", "dataroot_gt": "x"},
        },
        "network_g": {"type": "RRDBNetDP", "scale": 4},
        "train": {"perceptual_opt": {"type": "DPLoss", "mu": 0.5}},
    }  # fmt: skip
    (run / "train.yml").write_text(yaml.safe_dump(options))
    (run / "train_mine_1.log").write_text("2026 INFO: dp_basicsr 0.0.9\nVersion Information: ...")
    return network_file(str(run / "models" / "net_g_400.pth"), num_block=1)


def test_provenance_is_that_of_the_run_and_survives_another_export(trained: Path) -> None:
    network = load_network([trained])
    facts = trace(trained, network.notes)
    assert (facts["source"], facts["iteration"], facts["trained_by"]) == ("net_g_400.pth", "400", "dp_basicsr 0.0.9")
    assert facts["exported_by"] == f"dp_basicsr {__version__}"
    assert json.loads(facts["options"])["train"]["perceptual_opt"]["mu"] == 0.5
    assert facts["dataset_DIV2K"].startswith("HR: 2 images, sha256 ")
    assert "dataset_Set5" not in facts
    # The options that ran win over the copy of the option file, which has not what the command line changed.
    run = trained.parents[1]
    ran = yaml.safe_load((run / "train.yml").read_text())
    ran["train"]["perceptual_opt"]["mu"] = 0.25
    (run / USED_OPTIONS).write_text(json.dumps(ran))
    facts = trace(trained, network.notes)
    assert json.loads(facts["options"])["train"]["perceptual_opt"]["mu"] == 0.25
    export_network(network, "safetensors", Path("first.safetensors"), describe(network, facts))
    again = load_network([Path("first.safetensors")])
    assert trace(Path("first.safetensors"), again.notes).items() >= facts.items()


def test_published_options_hold_neither_secrets_nor_paths(trained: Path) -> None:
    file = trained.parents[1] / "train.yml"
    options = yaml.safe_load(file.read_text())
    options["wandb_key"] = options["train"]["wandb_key"] = options["network_g"]["api_token"] = "s3cret"
    options["logger"] = {"wandb": {"project": "s3cret"}}
    options["path"] = {"pretrain_network_g": "/home/someone/private.pth"}
    options["train"]["perceptual_opt"]["vgg_weights"] = "/home/someone/vgg.pth"
    options["datasets"]["train"]["meta_info_file"] = "/home/someone/list.txt"
    file.write_text(yaml.safe_dump(options))
    facts = trace(trained, {})
    assert not any(word in str(facts) for word in ("s3cret", "someone", str(file.parent)))
    published = json.loads(facts["options"])
    assert published["datasets"] == {"train": {"name": "DIV2K", "gt_size": 128, "batch_size_per_gpu": 16}}
    assert published["train"] == {"perceptual_opt": {"type": "DPLoss", "mu": 0.5, "vgg_weights": "(path)"}}


@pytest.mark.parametrize(
    "text",
    [
        "name: env\nchannels: [conda-forge]\ndependencies: [python=3.11]\nwandb_key: s3cret\n",
        "name: x\nmodel_type: M\nnetwork_g: {}\ndatasets: {train: {dataroot_gt: [a, b]}, 3: 4}\nwandb_key: s3cret\n",
        "name: x\nmodel_type: M\nnetwork_g: {}\ndatasets: []\n",
        "[1, 2]",
        "a: [",
    ],
)
def test_option_files_of_others_are_no_provenance(trained: Path, text: str) -> None:
    (trained.parents[1] / "train.yml").write_text(text)
    facts = trace(trained, {})
    assert "s3cret" not in str(facts)
    assert "dataset_train" not in facts
    (trained.parents[1] / "train_mine_1.log").write_text("2026 INFO: some other trainer 1.0")
    assert "options" not in trace(trained, {})


def test_metadata_of_others_is_not_passed_on() -> None:
    notes = {"exported_by": "somebody", "wandb_key": "s3cret", "options": "not JSON", "source": "x", "format": "pt"}
    facts = trace(Path(__file__), notes)
    assert facts.keys() == {"source", "source_sha256", "exported_by"}
    assert facts["source"] == "test_card.py"
    for options in ("not JSON", "[" * 100_000, '{"name": ' * 900 + "0" + "}" * 900):
        ours = notes | {"exported_by": "dp_basicsr 0.1", "options": options}
        assert "options" not in trace(Path(__file__), ours)


def test_a_fingerprint_tells_data_sets_apart() -> None:
    for name, size in (("a", 4), ("b", 4), ("c", 5)):
        write_noise(f"{name}/x.png", size, size)
    first, same, other = (fingerprint(Path(name)).partition(":")[2] for name in "abc")
    assert first == same != other
    Path("a/meta_info.txt").write_text("x.png (4,4,3) 1\ny.png (4,4,3) 1\n")
    assert "2 images" in fingerprint(Path("a"))
    assert fingerprint(Path("nowhere")) == "nowhere: not on the machine that exported"


def test_the_command_writes_file_card_and_a_valid_entry(
    trained: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    Path("table.md").write_text("| Set5, Y, crop 4 | 30.1 dB |")
    arguments = ["--model_path", str(trained), "-o", "deep/esrgan_dp.safetensors", "--license", "Apache-2.0",
                 "--metrics", "table.md", "--openmodeldb", "4x-dp.json"]  # fmt: skip
    assert export_model.main(arguments) == 0
    said = capsys.readouterr().out
    assert "wrote deep/esrgan_dp.safetensors (RRDBNetDP x4" in said
    assert "wrote 4x-dp.json; fill in author, tags, description, resources: urls, images\n" in said
    card = Path("deep/esrgan_dp.safetensors.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    for part in (
        "# esrgan_dp", "30.1 dB", "iteration: 400", "DIV2K: HR: 2 images", '"mu": 0.5', "model_type: ESRGANDPModel",
        "-m esrgan_dp.safetensors", "every program on spandrel open it",
    ):  # fmt: skip
        assert part in card
    text, data = Path("4x-dp.json").read_text(), Path("deep/esrgan_dp.safetensors").read_bytes()
    entry = json.loads(text)
    check(entry)
    assert text == json.dumps(entry, indent=4), "as JSON.stringify(entry, null, 4), which it insists on"
    expected = {
        "name": "esrgan_dp", "architecture": "esrgan", "size": ["8nf", "1nb"], "scale": 4, "license": "Apache-2.0",
        "trainingIterations": 400, "trainingBatchSize": 16, "trainingHRSize": 128, "dataset": "DIV2K", "datasetSize": 2,
    }  # fmt: skip
    assert expected.items() <= entry.items()
    assert entry["resources"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert entry["resources"][0]["size"] == len(data)
    assert "already exists: deep/esrgan_dp.safetensors" in refused(export_model.main, arguments)
    assert export_model.main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(("share", "iteration"), [("0", 400), ("0.3", 400), ("0.5", 800), ("1", 800)])
def test_the_card_of_a_blend_tells_of_the_network_with_the_larger_share(
    share: str, iteration: int, trained: Path
) -> None:
    other = network_file(str(trained.with_name("net_g_800.pth")), num_block=1)
    arguments = ["-m", str(trained), str(other), "--alpha-interp", share]
    assert export_model.main([*arguments, "-o", "my blend.pth"]) == 0
    card = Path("my blend.pth.md").read_text()
    assert f"- iteration: {iteration}\n" in card
    assert "-m 'my blend.pth'`" in card, "as a shell takes it"


@pytest.mark.parametrize("prefix", ["", "modelspec."])
def test_what_a_header_says_of_its_owner_is_kept(prefix: str) -> None:
    """In the header of any format, and in the card; a licence on the command line wins."""
    state, terms = torch.load(network_file(arch="MSRResNet"), weights_only=True)["params"], "MIT: see my page"
    save_file(state, "theirs.safetensors", {f"{prefix}author": "A. Person", f"{prefix}license": terms, "mood": "good"})
    for source, file in (("theirs.safetensors", "again.safetensors"), ("again.safetensors", "again.pth")):
        assert export_model.main(["--model_path", source, "-o", file]) == 0
        notes = load_network([Path(file)]).notes
        assert {"author": "A. Person", "license": terms}.items() <= notes.items()
        assert "mood" not in notes
        card = Path(f"{file}.md").read_text()
        assert yaml.safe_load(card.split("---")[1])["license"] == "other"
        assert f"Licence of the weights: {terms}." in card
        assert "- author: A. Person" in card
    assert export_model.main(["--model_path", "again.pth", "-o", "mine.safetensors", "--license", "CC0-1.0"]) == 0
    assert load_network([Path("mine.safetensors")]).notes["license"] == "CC0-1.0"


def test_the_code_of_a_card_has_the_size_and_type_that_the_file_takes(trained: Path) -> None:
    """SwinIR#145: files of one size, of one channel, and of fp16 had the code of others, which failed."""
    network = load_network(str(trained))  # a program may pass a text
    write_card(network, "onnx", Path("free.onnx"), {}, "")
    assert "image = np.random.rand(1, 3, 64, 64).astype(np.float32)" in Path("free.onnx.md").read_text()
    assert "RGB images in [0, 1], (N, 3, H, W)" in Path("free.onnx.md").read_text()
    assert "beyond [0, 1]: clip them before rounding" in Path("free.onnx.md").read_text()  # SwinIR#144
    network = replace(network, size=InputSize(1, minimum=192, maximum=192), channels=1)
    write_card(network, "onnx", Path("fixed.onnx"), {}, "", "float16")
    assert "image = np.random.rand(1, 1, 192, 192).astype(np.float16)  # gray" in Path("fixed.onnx.md").read_text()
    assert "gray images in [0, 1], (N, 1, H, W)" in Path("fixed.onnx.md").read_text()


def test_what_is_not_known_and_what_others_cannot_do_is_said(
    capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    path = network_file(arch="MSRResNet")
    assert export_model.main(["--model_path", str(path), "-o", "out.pth", "--openmodeldb", "entry.json"]) == 0
    said = capsys.readouterr().out
    assert "note: spandrel (chaiNNer, ComfyUI) cannot open it: it does not know MSRResNet" in said
    assert "images, license, a file name that begins with 4x-\n" in said
    check(json.loads(Path("entry.json").read_text()))
    card = Path("out.pth.md").read_text()
    for part in ("cannot open it: it does not know MSRResNet", "not stated: ask whoever", "options: not known"):
        assert part in card
    wrong = ["--model_path", str(path), "--format", "ncnn", "-o", "n", "--openmodeldb", "e.json"]
    assert "--openmodeldb: it lists safetensors, pth, onnx files, got" in refused(export_model.main, wrong)
    assert not list(Path().glob("n.*"))


def test_several_data_sets_are_one_in_the_entry() -> None:
    Path("out.onnx").write_bytes(b"network")
    facts = {
        "arch": "MSRResNet", "scale": "3",
        "dataset_DIV2K": "HR: 800 images, sha256 0", "dataset_Flickr2K": "HR: 2650 images, sha256 0",
    }  # fmt: skip
    write_entry(Path("entry.json"), "onnx", Path("out.onnx"), facts)
    entry = json.loads(Path("entry.json").read_text())
    check(entry)
    assert (entry["architecture"], entry["dataset"], entry["datasetSize"]) == ("sr-res-net", "DIV2K, Flickr2K", 3450)
