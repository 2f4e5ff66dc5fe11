"""Other systems: what Windows lacks is not needed, and text is UTF-8 under every locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.support.networks import make_network

ROOT = Path(__file__).resolve().parents[1]

# Chinese text in comments, lists, and values that are only displayed.
OPTIONS = """# 训练
name: small
model_type: PSNRModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: 训练集
    type: PairedImageDataset
    dataroot_gt: pairs/GT
    dataroot_lq: pairs/LRbicx4
    meta_info_file: list.txt
    io_backend: {type: disk}
    gt_size: 64
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: 2
  val_1: &set
    name: 验证
    type: PairedImageDataset
    dataroot_gt: pairs/GT
    dataroot_lq: pairs/LRbicx4
    meta_info_file: list.txt
    io_backend: {type: disk}
  test_1: *set
network_g: {type: RRDBNetDP, scale: 4, num_feat: 4, num_block: 1, num_grow_ch: 4}
path: {pretrain_network_g: ~}
train:
  optim_g: {type: Adam, lr: 1e-3}
  scheduler: {type: MultiStepLR, milestones: [1]}
  total_iter: 2
  pixel_opt: {type: L1Loss}
val: {val_freq: 2, save_img: false, metrics: {psnr_rgb: {type: calculate_psnr, crop_border: 4}}}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: true}
"""

# What Windows lacks, before anything is imported.
WINDOWS = """
import os, runpy, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog"):
    sys.modules[name] = None
for module, names in ((signal, ("SIGUSR1", "sigwaitinfo", "pthread_sigmask")), (os, ("sched_getaffinity", "getuid"))):
    for name in names:
        delattr(module, name)
"""

STEPS = """
import contextlib, glob
for script in sorted(glob.glob(os.path.join(sys.argv[1], "scripts", "*.py"))):
    sys.argv = [script, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
from dp_basicsr import inference, test, train
check = ["-opt", "small.yml", "--check"]
trained = "path:pretrain_network_g=experiments/small/models/net_g_latest.pth"
train.main(check)
train.main(check[:2])
test.main(check[:2] + ["--force_yml", trained])
inference.main(["-i", "pairs/LRbicx4", "-o", "out", "--model_path", "model.pth", "--device", "cpu"])
"""

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def python(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a child, which must succeed; return its output."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def test_train_test_and_upscale_without_posix_under_an_ascii_locale(pairs: Path) -> None:
    Path("small.yml").write_text(OPTIONS, encoding="utf-8")
    names = sorted(path.name for path in Path("pairs/GT").iterdir())
    Path("list.txt").write_text("".join(f"{name} (图)\n" for name in names), encoding="utf-8")
    torch.save({"params": make_network().state_dict()}, "model.pth")
    printed = python(WINDOWS + STEPS, str(ROOT), **ASCII)
    assert printed.count("usage: ") == len(list((ROOT / "scripts").glob("*.py")))
    assert "cannot be locked (this system has no fcntl): start no second run of this name" in printed
    assert "not measured on this system" in printed
    run = Path("experiments/small")
    assert (run / "small.yml").read_text(encoding="utf-8").endswith(OPTIONS)
    (log,) = run.glob("*.log")
    assert "训练集" in log.read_text(encoding="utf-8")
    assert not Path("experiments/.small.lock").exists()
    assert len(list(Path("out").iterdir())) == len(list(Path("pairs/LRbicx4").iterdir()))


def test_a_name_that_the_locale_lacks_is_one_message() -> None:
    failing = "from dp_basicsr.errors import exit_on_user_error as e\nwith e():\n    open(chr(0x8bad), 'wb')"
    command = [sys.executable, "-c", failing]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ASCII
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: '\\u8bad' cannot be a file name under this locale (ascii): set LC_ALL=C.UTF-8"
    )
