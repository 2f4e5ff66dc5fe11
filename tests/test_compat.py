"""The compatibility bridges; test_package.py checks that importing the plugin is enough and does nothing else."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from types import SimpleNamespace

from dp_basicsr.compat import complete_basicsr, install, without_cuda

import numpy as np
import pytest
import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import AvgTimer, MessageLogger
from torchvision.transforms import _functional_tensor

from tests.support.programs import python


def test_the_removed_module_is_torchvision_s_own_under_its_old_name() -> None:
    """Complete: code that tries this name before ``_functional_tensor`` finds everything in it."""
    from basicsr.data.degradations import rgb_to_grayscale
    from torchvision.transforms import functional_tensor

    assert {name: vars(functional_tensor).get(name) for name in dir(_functional_tensor) if name[0] != "_"} == {
        name: value for name, value in vars(_functional_tensor).items() if name[0] != "_"
    }
    assert rgb_to_grayscale is _functional_tensor.rgb_to_grayscale


def test_a_strangers_basicsr_is_completed_and_keeps_its_methods_until_our_programs_start() -> None:
    """Importing it fails without the plugin (when it does not, the bridge can go), and works with it.

    With a SciPy 2, which removes a name; and only ``complete_basicsr`` replaces methods, once.
    """
    code = """
import importlib.machinery as machinery, sys
try:
    import basicsr
except ImportError as error:
    assert str(error) == "No module named 'torchvision.transforms.functional_tensor'"
else:
    raise AssertionError
there = machinery.PathFinder.find_spec
def scipy_2(name, path=None, target=None):
    return None if name == "scipy.ndimage.filters" else there(name, path, target)
machinery.PathFinder.find_spec = scipy_2
sys.modules.pop("scipy.ndimage.filters", None)
import dp_basicsr.archs, dp_basicsr.losses, dp_basicsr.models, scipy.ndimage
from basicsr.metrics.niqe import convolve
from basicsr.models.base_model import BaseModel
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.registry import LOSS_REGISTRY
assert convolve is scipy.ndimage.convolve
assert LOSS_REGISTRY.get("DPLoss") is dp_basicsr.losses.DPLoss
methods = lambda: (BaseModel.get_optimizer, BaseModel.model_to_device, DiffJPEG.forward)
assert all(method.__module__.startswith("basicsr.") for method in methods())
from dp_basicsr.compat import complete_basicsr
complete_basicsr()
before = methods()
assert all(method.__module__ == "dp_basicsr.compat" for method in before)
complete_basicsr()
assert methods() == before
for name in [name for name in sys.modules if name.partition(".")[0] == "dp_basicsr"]:
    del sys.modules[name]
import dp_basicsr.archs, dp_basicsr.losses, dp_basicsr.models  # anew, as Spyder does at each run of a file
assert LOSS_REGISTRY.get("DPLoss") is dp_basicsr.losses.DPLoss
"""
    python(code, env={"PYTHONWARNINGS": "error::DeprecationWarning:basicsr.metrics"})


def test_operators_that_cannot_be_compiled_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GFPGAN#77: BASICSR_JIT=True without a GPU; torch refuses to compile for a GPU that it does not know, too."""
    monkeypatch.setenv("BASICSR_JIT", "True")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "none")
    spec = importlib.util.find_spec("basicsr.ops.dcn")
    assert spec is not None
    name = "basicsr.ops.dcn.deform_conv"
    found = next(spec for finder in sys.meta_path if (spec := finder.find_spec(name, spec.submodule_search_locations)))
    assert found.loader is not None
    found.loader.exec_module(operators := importlib.util.module_from_spec(found))
    assert operators.BASICSR_JIT is None
    assert "BASICSR_JIT" not in os.environ
    assert "without compiled operators" in capsys.readouterr().err


def test_plugins_find_what_basicsr_1_4_moved_where_they_look_for_it() -> None:
    """HAT, SwinFIR, GFPGAN, MM-RealSR."""
    from basicsr.losses import basic_loss, gan_loss
    from basicsr.losses.losses import GANLoss, PerceptualLoss, r1_penalty
    from basicsr.utils import color_util
    from basicsr.utils.matlab_functions import bgr2ycbcr, imresize, rgb2ycbcr, ycbcr2bgr, ycbcr2rgb

    moved = (bgr2ycbcr, rgb2ycbcr, ycbcr2bgr, ycbcr2rgb)
    assert moved == (color_util.bgr2ycbcr, color_util.rgb2ycbcr, color_util.ycbcr2bgr, color_util.ycbcr2rgb)
    assert imresize.__module__ == "basicsr.utils.matlab_functions"
    assert (GANLoss, r1_penalty) == (gan_loss.GANLoss, gan_loss.r1_penalty)
    assert PerceptualLoss is basic_loss.PerceptualLoss


def test_degradations_of_faces_compress_with_any_quality() -> None:
    """GFPGAN's, CodeFormer's: OpenCV 5 takes whole numbers alone."""
    from basicsr.data.degradations import random_add_jpg_compression

    assert random_add_jpg_compression(np.full((8, 8, 3), 0.5, np.float32), [60, 90]).shape == (8, 8, 3)


def test_an_optimizer_takes_its_rate_by_position_and_betas_that_are_whole_numbers() -> None:
    """As StyleGAN2Model and GFPGANModel call it."""
    complete_basicsr()
    optimizer = BaseModel.get_optimizer(None, "Adam", [torch.zeros(1, requires_grad=True)], 1e-3, betas=(0, 0.99))
    assert optimizer.defaults["lr"] == 1e-3
    assert optimizer.defaults["betas"] == (0.0, 0.99)


def test_an_already_imported_basicsr_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with its own patch for torchvision may import BasicSR first."""
    from basicsr.utils import DiffJPEG, matlab_functions

    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delattr(matlab_functions, "rgb2ycbcr")
    monkeypatch.setattr(DiffJPEG, "forward", DiffJPEG.forward)
    install()
    assert callable(matlab_functions.rgb2ycbcr)


def test_jpeg_images_are_contiguous() -> None:
    """RealESRGANModel filters them next, by ``view``."""
    complete_basicsr()
    from basicsr.utils import DiffJPEG

    assert DiffJPEG(differentiable=False)(torch.rand(2, 3, 32, 48), quality=torch.tensor([50.0, 90.0])).is_contiguous()


def test_cuda_stays_on_the_cpu_in_a_run_without_gpus_only() -> None:
    before = torch.Tensor.cuda, torch.nn.Module.cuda
    x, net = torch.ones(2), torch.nn.Linear(1, 1)
    with without_cuda(on_cpu=True):
        assert x.cuda() is x
        assert net.cuda() is net
    with without_cuda(on_cpu=False):
        assert (torch.Tensor.cuda, torch.nn.Module.cuda) == before
    assert (torch.Tensor.cuda, torch.nn.Module.cuda) == before


def test_a_clock_that_is_set_moves_no_time_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """rsl_rl#10: "eta: -1 day" until the end of the run; a suspended machine moves the clock, too."""
    complete_basicsr()
    opt = {"name": "run", "logger": {"print_freq": 1, "use_tb_logger": False}, "train": {"total_iter": 100}}
    timer, line, lines = AvgTimer(), MessageLogger(opt), []
    line.logger = SimpleNamespace(info=lines.append)
    now = time.time()
    for jump in (-7200, 86400):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        timer.record()
        line({"epoch": 0, "iter": 50, "lrs": [1e-4], "time": timer.get_avg_time(), "data_time": 0.0})
    assert 0 <= timer.get_avg_time() < 60
    assert ["eta: 0:00:" in text for text in lines] == [True, True]
