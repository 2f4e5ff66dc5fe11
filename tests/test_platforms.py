"""Other systems: what Windows lacks is not needed, and text is UTF-8 under every locale."""

from __future__ import annotations

from pathlib import Path
from subprocess import PIPE, STDOUT

from tests.support.networks import network_file
from tests.support.options import SMALL_PSNR
from tests.support.programs import ROOT, python

# Chinese text in comments, lists, and values that are only displayed.
VALIDATED = """
  val_1: &set {name: 验证, type: PairedImageDataset, dataroot_gt: pairs/GT, dataroot_lq: pairs/LRbicx4,
               meta_info_file: list.txt, io_backend: {type: disk}}
  test_1: *set
val: {val_freq: 2, save_img: false, metrics: {psnr_rgb: {type: calculate_psnr, crop_border: 4}}}
network_g"""
OPTIONS = "# 训练" + SMALL_PSNR.replace("\nnetwork_g", VALIDATED)
for old, new in (
    ("name: pairs", "name: 训练集, meta_info_file: list.txt"),
    ("num_worker_per_gpu: 0", "num_worker_per_gpu: 1"),
    ("use_tb_logger: false", "use_tb_logger: true"),
):
    assert old in OPTIONS
    OPTIONS = OPTIONS.replace(old, new)

# What Windows lacks, before anything is imported.
WINDOWS = """
import os, runpy, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog"):
    if name != "pwd" or sys.version_info >= (3, 11):  # before, expanduser itself needs it
        sys.modules[name] = None
signals, calls = ("SIGUSR1", "sigwaitinfo", "pthread_sigmask"), ("sched_getaffinity", "getuid", "pathconf")
for module, names in ((signal, signals), (os, calls)):
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


def test_train_test_and_upscale_without_posix_under_an_ascii_locale(pairs: Path) -> None:
    Path("small.yml").write_text(OPTIONS, encoding="utf-8")
    names = sorted(path.name for path in Path("pairs/GT").iterdir())
    Path("list.txt").write_text("".join(f"{name} (图)\n" for name in names), encoding="utf-8")
    network_file("model.pth")
    printed = python(WINDOWS + STEPS, ROOT, env=ASCII, stdout=PIPE, stderr=STDOUT, capture_output=False).stdout
    assert "Traceback" not in printed
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
    done = python(failing, check=False, env=ASCII)
    assert done.returncode == 2
    expected = "error: '\\u8bad' cannot be a file name under this locale (ascii): set LC_ALL=C.UTF-8"
    assert done.stderr.startswith(expected)
