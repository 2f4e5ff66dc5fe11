"""Test and measure everything on this machine's GPU: `make gpu-report` writes results/gpu/report.md and report.json."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

from dp_basicsr.errors import UserError
from dp_basicsr.utils.console import data_command
from dp_basicsr.utils.safe_load import load

import torch

from benchmarks.__main__ import PARTS
from benchmarks.measure import ROOT, Settings, Table, write_report
from benchmarks.soak import NETWORKS, prepare, train_command

REHEARSED_TESTS = "tests/archs/test_generators.py"
OUTCOMES = ("passed", "failure", "error", "skipped")


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
        device = re.search(r"[\[-](cpu|cuda)\b", str(case.get("name")))
        outcome = next((kind for kind in OUTCOMES[1:] if case.find(kind) is not None), "passed")
        counts[device[1] if device else "neither", outcome] += 1
        failed += [f"{case.get('classname')}::{case.get('name')}"] if outcome in ("failure", "error") else []
    rows = [(device, *(str(counts[device, outcome]) for outcome in OUTCOMES)) for device in ("cpu", "cuda", "neither")]
    note = f"Failed: {', '.join(failed)}." if failed else "None failed."
    return Table("Tests, by the device they name", ("device", *OUTCOMES), rows, {"failed": failed}, note)


def train(folder: Path, *overrides: str, options: str = "train_demo.yml", resume: bool = False) -> list[float]:
    """Train in ``folder``; return the GPU's utilisation, from 0 to 1, once per second from the first log line on."""
    command = train_command(*overrides, options=options) + (["--auto_resume"] if resume else [])
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    shares: list[float] = []
    with (folder / "output").open("w") as output:
        training = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, text=True)
        while training.poll() is None:
            time.sleep(1)
            logs = list(folder.glob("experiments/run/*.log"))
            if torch.cuda.is_available() and logs and "iter:" in logs[0].read_text().partition("Start training")[2]:
                shares.append(float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 100)
    if training.returncode != 0:
        raise UserError(f"the training ended with {training.returncode}: {(folder / 'output').read_text()[-500:]}")
    return shares


def resume(rehearse: bool) -> Table:
    """Train with ``deterministic: true`` in one run and in two halves, and compare the weights bit for bit."""
    total = 6 if rehearse else 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = ["deterministic=true", f"logger:save_checkpoint_freq={total // 2}", "logger:print_freq=1"]
        common += ["logger:use_tb_logger=false", f"train:scheduler:milestones=[{total}]", *prepare(folder, "raw")]
        common += NETWORKS if rehearse else ()
        train(folder, *common, "name=whole", f"train:total_iter={total}")
        train(folder, *common, "name=halves", f"train:total_iter={total // 2}")
        train(folder, *common, "name=halves", f"train:total_iter={total}", resume=True)
        rows, figures = [], {}
        for net in ("net_g", "net_d"):
            whole, halves = (
                load(folder / f"experiments/{run}/models/{net}_latest.pth", "network") for run in ("whole", "halves")
            )
            keys = whole.keys() - {"options"}  # of text
            same = all(torch.equal(whole[key][name], halves[key][name]) for key in keys for name in whole[key])
            figures[net] = {"same_bits": same}
            rows.append((net, "bit-identical" if same else "DIFFERENT"))
    return Table(f"Resumed after {total // 2} of {total} iterations", ("network", "weights"), rows, figures)


def run(rehearse: bool) -> Table:
    """Train as in the paper; measure an iteration, and the shares of waiting for data and of an idle GPU."""
    options, total = ("train_demo.yml", 6) if rehearse else ("train_esrgan_dp.yml", 200)
    overrides = ["name=run", f"train:total_iter={total}", f"logger:print_freq={total // 2}"]
    overrides += [f"train:scheduler:milestones=[{total}]", "val=~", *(NETWORKS if rehearse else ())]
    overrides += [f"train:perceptual_opt:{net}_weights=random" for net in ("vgg", "resnet")]
    with tempfile.TemporaryDirectory() as name:
        overrides += [entry for entry in prepare(Path(name), "raw") if not entry.startswith("datasets:val:")]
        busy = train(Path(name), *overrides, options=options)
        log = next(Path(name).glob("experiments/run/*.log")).read_text()
    seconds, waiting = (float(number) for number in re.findall(r"time \(data\): ([\d.]+) \(([\d.]+)\)", log)[-1])
    idle = f"{1 - sum(busy) / len(busy):.0%}" if busy else "unknown"
    rows = [("an iteration", f"{seconds:.3f} s"), ("the loop waits for data", f"{waiting / seconds:.0%}")]
    rows.append(("the GPU waits for work", idle))
    figures = {"seconds": seconds, "data_seconds": waiting, "gpu_busy": busy}
    return Table(f"{options}, {total} iterations from raw records", ("", ""), rows, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny version on the CPU: can the report be made?")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="output folder")
    args = parser.parse_args(argv)
    with data_command():
        if not torch.cuda.is_available() and not args.rehearse:
            raise UserError("expected a CUDA GPU, got none that torch can use; --rehearse tries it on the CPU")
        settings = Settings(quick=True, rounds=1, batches=(2,)) if args.rehearse else Settings(compile=True)
        tables = [suite(REHEARSED_TESTS if args.rehearse else "tests"), resume(args.rehearse), run(args.rehearse)]
        for part in PARTS:
            print(f"measuring {part}", file=sys.stderr)
            tables += import_module(f"benchmarks.{part}").measure(settings)
        facts = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        if args.rehearse:
            facts["REHEARSAL"] = "the figures are meaningless"
        write_report(tables, args.out / "report", **facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
