"""Report of scripts/gpu_report.py: tests, bit-exact resume, a run, and parts of the benchmark."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from dp_basicsr.errors import UserError
from dp_basicsr.utils.safe_load import load

import torch

from scripts.bench import data, inference, operations, step, validation
from scripts.bench.measure import ROOT, Settings, Table
from scripts.bench.report import machine, markdown, write
from scripts.bench.soak import NETWORKS, prepare, train_command

# For --rehearse: one test file, few iterations, tiny networks.
REHEARSED_TESTS, REHEARSED_ITERATIONS = "tests/archs/test_rrdbnet_dp_arch.py", 6
ITERATIONS = 200

# Parts of the benchmark.
PARTS = (step, operations, data, validation, inference)


def make_report(rehearse: bool, out: Path) -> None:
    """Print the report and write ``report.md`` and ``report.json`` into ``out``.

    Raises:
        UserError: There is no CUDA GPU, and ``rehearse`` is false.
    """
    if not torch.cuda.is_available() and not rehearse:
        raise UserError("expected a CUDA GPU, got none that torch can use; --rehearse runs a tiny version on the CPU")
    tables = report(rehearse)
    where = machine() | {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    if rehearse:
        where["REHEARSAL"] = "the figures are meaningless"
    print(markdown(where, tables))
    write(where, tables, out, "report")


def report(rehearse: bool) -> list[Table]:
    """Return all tables: tests, bit-exact resume, a run, and parts of the benchmark."""
    settings = Settings(quick=True, rounds=1, batches=(2,)) if rehearse else Settings(compile=True)
    sections: list[Callable[[], list[Table]]] = [
        lambda: [suite(REHEARSED_TESTS if rehearse else "tests")],
        lambda: [resume(rehearse)],
        lambda: [run(rehearse)],
        *(lambda part=part: part.measure(settings) for part in PARTS),  # type: ignore[misc]
    ]
    tables = []
    for section in sections:
        start = time.perf_counter()
        made = section()
        print(f"{made[0].title}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        tables += made
    return tables


def suite(tests: str) -> Table:
    """Run the tests; count the outcomes of those for the CPU, for the GPU, and for neither."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", tests, f"--junitxml={folder}/tests.xml"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not Path(folder, "tests.xml").exists():
            raise UserError(f"the tests did not run: {(done.stdout + done.stderr)[-500:]}")
        cases = list(ElementTree.parse(f"{folder}/tests.xml").iter("testcase"))
    counts: Counter[tuple[str, str]] = Counter()
    failed = []
    for case in cases:
        name = str(case.get("name"))
        device = "cuda" if re.search(r"[\[-]cuda\b", name) else "cpu" if re.search(r"[\[-]cpu\b", name) else "neither"
        outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
        counts[device, outcome] += 1
        failed += [f"{case.get('classname')}::{name}"] if outcome in ("failure", "error") else []
    outcomes = ("passed", "failure", "error", "skipped")
    rows = [(device, *(str(counts[device, one]) for one in outcomes)) for device in ("cpu", "cuda", "neither")]
    note = f"Failed: {', '.join(failed)}." if failed else "None failed."
    return Table("Tests, by the device they name", ("device", *outcomes), rows, {"failed": failed}, note)


def train(
    folder: Path, *overrides: str, options: str = "train_demo.yml", resume: bool = False
) -> subprocess.Popen[str]:
    """Start a training in ``folder``."""
    command = train_command(*overrides, options=options) + (["--auto_resume"] if resume else [])
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen[str]) -> None:
    """Wait for a training; raise a UserError if it fails."""
    _, said = run.communicate()
    if run.returncode != 0:
        raise UserError(f"the training ended with {run.returncode}: {said[-500:]}")


def resume(rehearse: bool) -> Table:
    """Train with ``deterministic: true`` in one run and in two halves, and compare the weights bit for bit."""
    total = REHEARSED_ITERATIONS if rehearse else 60
    common = ["deterministic=true", f"logger:save_checkpoint_freq={total // 2}", "logger:print_freq=1"]
    common += ["logger:use_tb_logger=false", f"train:scheduler:milestones=[{total}]"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common += [*prepare(folder, "raw"), *(NETWORKS if rehearse else ())]
        finish(train(folder, *common, "name=whole", f"train:total_iter={total}"))
        finish(train(folder, *common, "name=halves", f"train:total_iter={total // 2}"))
        finish(train(folder, *common, "name=halves", f"train:total_iter={total}", resume=True))
        rows, figures = [], {}
        for net in ("net_g", "net_d"):
            files = [folder / f"experiments/{run}/models/{net}_latest.pth" for run in ("whole", "halves")]
            one, other = (load(file, "network") for file in files)
            same = all(torch.equal(one[key][name], other[key][name]) for key in one for name in one[key])
            figures[net] = {"same_bits": same}
            rows.append((net, "bit-identical" if same else "DIFFERENT"))
    return Table(f"Resumed after {total // 2} of {total} iterations", ("network", "weights"), rows, figures)


def run(rehearse: bool) -> Table:
    """Train as in the paper; measure an iteration, and the shares of waiting for data and of an idle GPU."""

    total = REHEARSED_ITERATIONS if rehearse else ITERATIONS
    options = "train_demo.yml" if rehearse else "train_esrgan_dp.yml"
    overrides = ["name=run", f"train:total_iter={total}", f"logger:print_freq={total // 2}"]
    overrides += [f"train:scheduler:milestones=[{total}]", "val=~"]
    overrides += [f"train:perceptual_opt:{net}_weights=random" for net in ("vgg", "resnet")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = [entry for entry in prepare(folder, "raw") if not entry.startswith("datasets:val:")]
        training = train(folder, *overrides, *data, *(NETWORKS if rehearse else ()), options=options)
        busy = watch_gpu(training, folder)
        finish(training)
        log = next(folder.glob("experiments/run/*.log")).read_text()
    seconds, waiting = (float(one) for one in re.findall(r"time \(data\): ([\d.]+) \(([\d.]+)\)", log)[-1])
    idle = f"{1 - sum(busy) / len(busy):.0%}" if busy else "unknown"
    rows = [("an iteration", f"{seconds:.3f} s"), ("the loop waits for data", f"{waiting / seconds:.0%}")]
    rows.append(("the GPU waits for work", idle))
    figures = {"seconds": seconds, "data_seconds": waiting, "gpu_busy": busy}
    return Table(f"{options}, {total} iterations from raw records", ("", ""), rows, figures)


def watch_gpu(training: subprocess.Popen[str], folder: Path) -> list[float]:
    """Return the GPU utilisation, from 0 to 1, once per second from the first log line on."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    shares: list[float] = []
    while training.poll() is None:
        logs = list(folder.glob("experiments/run/*.log"))
        if logs and "iter:" in logs[0].read_text().partition("Start training")[2]:
            try:
                shares.append(float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 100)
            except FileNotFoundError:  # no NVIDIA driver in a rehearsal
                return shares
        time.sleep(1)
    return shares
