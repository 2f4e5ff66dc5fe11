"""`--import`: classes of other packages, registered before the options are checked."""

from __future__ import annotations

import importlib
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dp_basicsr import test, train
from dp_basicsr.options import import_modules

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from tests.support.options import SMALL
from tests.support.programs import logs_of, losses_of

# A module of a user, with one class of every kind.
THEIRS = """
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from torch import nn

@LOSS_REGISTRY.register()
class TheirLoss(nn.Module):
    def __init__(self, power=1):
        super().__init__()
        self.power = power

    def forward(self, x, gt):
        return ((x - gt).abs() ** self.power).mean()

@ARCH_REGISTRY.register()
class TheirNet(nn.Sequential):
    def __init__(self, num_feat):
        super().__init__(nn.Conv2d(3, num_feat, 3, 1, 1), nn.Conv2d(num_feat, 48, 3, 1, 1), nn.PixelShuffle(4))

@MODEL_REGISTRY.register()
class TheirModel(ESRGANModel):
    def feed_data(self, data):
        super().feed_data(data)
        assert self.opt["their_key"] == 3

@DATASET_REGISTRY.register()
class TheirDataset(PairedImageDataset):
    pass

@METRIC_REGISTRY.register()
def their_metric(img, img2, **kwargs):
    return 42.0
"""

TERMS = "train:perceptual_opt:extra_terms=[{type: TheirLoss, power: 2, mu: 2.0, name: theirs}]"


@pytest.fixture
def folder(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with an option file and the user's module, whose classes are unregistered after the test."""
    Path("small.yml").write_text(SMALL)
    Path("their_classes.py").write_text(THEIRS)
    for registry in (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()  # for files created within the last second
    yield
    for name in ("their_classes", "raising"):
        sys.modules.pop(name, None)


def test_classes_of_an_imported_module_train_and_test(folder: None) -> None:
    """With spawned loader workers, as on macOS and Windows: they import the dataset's module too."""
    start = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    theirs = ["model_type=TheirModel", "their_key=3", "network_g={type: TheirNet, num_feat: 4}", TERMS,
              "datasets:train:type=TheirDataset", "val:metrics={theirs: {type: their_metric}}"]  # fmt: skip
    try:
        train.main(["-opt", "small.yml", "--import", "their_classes", "--force_yml", *theirs, "train:total_iter=2",
                    "val:val_freq=2", "train:scheduler:milestones=[2]"])  # fmt: skip
    finally:
        multiprocessing.set_start_method(start, force=True)
    assert losses_of(logs_of()).keys() == {1, 2}
    assert "# theirs: 42.0000" in logs_of()
    assert "their_classes" not in Path("experiments/small/small.yml").read_text().partition("\n\n")[2]
    test.main(["-opt", "small.yml", "--import", "their_classes", "--force_yml", *theirs,
               "path:pretrain_network_g=experiments/small/models/net_g_latest.pth"])  # fmt: skip
    assert list(Path("results/small").rglob("*.png"))


@pytest.mark.parametrize("main", [train.main, test.main])
def test_without_the_import_its_names_are_unknown(
    main: Callable[..., None], folder: None, refused: Callable[..., str]
) -> None:
    error = refused(main, ["-opt", "small.yml", "--force_yml", TERMS])
    assert "extra_terms:0:type: expected a loss, got 'TheirLoss'" in error
    assert "(--import MODULE adds another package's)" in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("not_there", "", "ModuleNotFoundError: No module named 'not_there'"),
        ("raising", "import basicsr\n1 / 0\n", r"ZeroDivisionError: division by zero \(\S+raising.py:2\)"),
        ("raising", "import needs_this\n", r"ModuleNotFoundError: No module named 'needs_this' \(\S+raising.py:1\)"),
        ("raising", "def f(:\n", r"SyntaxError: invalid syntax \(raising.py, line 1\)"),
        ("raising", "import sys\nsys.exit('usage: ...')\n", r"SystemExit: usage: ... \(\S+raising.py:2\)"),
        ("small.yml", "", "ModuleNotFoundError: No module named 'small'"),
        ("../raising.py", "", "TypeError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_message(
    name: str, content: str, message: str, folder: None, refused: Callable[..., str]
) -> None:
    Path("raising.py").write_text(content)
    (error,) = refused(train.main, ["-opt", "small.yml", "--import", name]).splitlines()
    kind = (
        "what it imports to be installed"
        if "needs" in content
        else "an installed module or a file in the current folder"
    )
    assert re.match(f"error: --import {name}: expected {kind}, got {message}", error), error
    assert not Path("experiments").exists()


def test_a_module_may_be_named_by_its_file(folder: None) -> None:
    Path("lib").mkdir()
    Path("lib/also_theirs.py").write_text("")
    for name in ("their_classes.py", "./their_classes.py", str(Path("their_classes.py").absolute())):
        import_modules([name])
        assert sys.modules["their_classes"].__file__ == str(Path("their_classes.py").absolute())
    import_modules(["lib/also_theirs.py"])
    assert "lib.also_theirs" in sys.modules


def test_a_module_beside_a_project_s_copy_of_basicsr_is_imported(folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAFMN, SPAN, ATD and others: the copy itself is hidden by the installed BasicSR, whose modules come first."""
    Path("basicsr/archs/ops").mkdir(parents=True)
    Path("basicsr/archs/ops/__init__.py").write_text("")
    Path("basicsr/archs/ops/scan.py").write_text("")
    Path("basicsr/archs/rrdbnet_arch.py").write_text("1 / 0")
    code = (
        "from basicsr.archs.rrdbnet_arch import RRDBNet\nfrom .arch_util import trunc_normal_\nfrom .ops import scan\n"
    )
    for name, file in (("safmn", "basicsr/archs/safmn_arch.py"), ("span", "basicsr.archs.span_arch")):
        Path(f"basicsr/archs/{name}_arch.py").write_text(code)
        import_modules([file])
        assert sys.modules.pop(f"basicsr.archs.{name}_arch").RRDBNet.__module__ == "basicsr.archs.rrdbnet_arch"
    for name in ("basicsr.archs.ops", "basicsr.archs.ops.scan"):
        monkeypatch.delitem(sys.modules, name)


def test_a_module_that_changes_torch_s_type_of_numbers_changes_no_network(
    folder: None, caplog: pytest.LogCaptureFixture
) -> None:
    Path("raising.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\n")
    import_modules(["raising"])
    assert torch.get_default_dtype() == torch.float32
    assert "--import raising set torch's default type to torch.float64; reset to float32" in caplog.text


def test_a_class_of_a_name_that_is_taken_is_one_message(folder: None, refused: Callable[..., str]) -> None:
    Path("raising.py").write_text(
        "from basicsr.utils.registry import ARCH_REGISTRY\n@ARCH_REGISTRY.register()\nclass RRDBNet:\n    pass\n"
    )
    (error,) = refused(train.main, ["-opt", "small.yml", "--import", "raising"]).splitlines()
    expected = r"classes with names of their own \(rename it\), got AssertionError: .*'RRDBNet' .* \(\S+raising.py:\d\)"
    assert re.search(expected, error), error
