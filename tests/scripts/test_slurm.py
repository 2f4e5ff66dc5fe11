"""The SLURM scripts: valid bash, and what they start, with an srun that starts two plain processes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from dp_basicsr.options import parse_command_line

import pytest

from tests.support.programs import ROOT

SCRIPTS = sorted((ROOT / "scripts/slurm").glob("*.sbatch"))

# Starts its command twice, as `srun --ntasks=2` does, and ends with the higher exit code.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_NODELIST=127.0.0.1 "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""

# Stands in for train.py's two processes, or run_study.py's one.
PYTHON = """#!/bin/bash
echo "python $*"
[[ -z ${SLURM_PROCID:-} ]] || echo "rank $SLURM_PROCID"
exit "${CODE:-0}"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun`, `scontrol` and `python` of the test's own, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/sh\necho "scontrol $*"\n', "python": PYTHON}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = ["bash", str(ROOT / "scripts/slurm" / script), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_show_their_usage_without_arguments(script: Path, programs: None) -> None:
    done = run(script.name)
    assert done.returncode != 0
    assert "usage: sbatch" in done.stderr
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert directives
    assert all(re.match(r"#SBATCH --[a-z-]+(=\S+)?(\s+#.*)?$", line) for line in directives)


def test_train_starts_one_process_per_task(programs: None) -> None:
    done = run("train.sbatch", "options/x.yml", "--force_yml", "name=a b")
    command = "python dp_basicsr/train.py -opt options/x.yml --launcher slurm --auto_resume --force_yml name=a b"
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [command, command, "rank 0", "rank 1"]
    args = parse_command_line("", shlex.split(command)[2:])
    assert (args.opt, args.launcher, args.auto_resume) == ("options/x.yml", "slurm", True)


@pytest.mark.parametrize(
    ("code", "count", "requeued"), [("75", "0", True), ("75", "7", True), ("75", "50", False), ("2", "0", False)]
)
def test_run_that_can_resume_is_requeued(code: str, count: str, requeued: bool, programs: None) -> None:
    done = run("train.sbatch", "options/x.yml", CODE=code, SLURM_RESTART_COUNT=count)
    assert done.returncode == int(code)
    assert ("scontrol requeue 4711" in done.stdout) is requeued


def test_a_study_is_divided_among_the_tasks_of_an_array(programs: None) -> None:
    done = run("study_array.sbatch", "mu", "--smoke", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="7")
    assert done.stdout == "python scripts/run_study.py mu --part 3/7 --smoke\n"
