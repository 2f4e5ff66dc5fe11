"""Checkpoints: written atomically, found by their content, and read without running code."""

from __future__ import annotations

import errno
import hashlib
import logging
import resource
import shutil
import signal
import subprocess
from pathlib import Path

from dp_basicsr.checkpoint.manifest import check_manifest, delete_older, write_manifest
from dp_basicsr.checkpoint.resume import find_resume_point, read_state, resume_warnings, run_metadata
from dp_basicsr.errors import UserError
from dp_basicsr.utils import atomic_io
from dp_basicsr.utils.atomic_io import write_checkpoint

import pytest
import torch


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io, "RETRY_AFTER", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of an experiment."""
    for name in ("models", "training_states"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return tmp_path / "run"


def options(run: Path, auto_resume: bool = True) -> dict:
    return {
        "auto_resume": auto_resume,
        "manual_seed": 1,
        "network_g": {},
        "path": {"models": str(run / "models"), "training_states": str(run / "training_states"), "resume_state": None},
    }


def resume(opt: dict) -> dict:
    point = find_resume_point(opt)
    assert point is not None
    return point.options(opt)


def save(run: Path, iteration: int, manifest: bool = True) -> list[Path]:
    """A checkpoint as a model writes it."""
    net, state = run / f"models/net_g_{iteration}.pth", run / f"training_states/{iteration}.state"
    content = {"iter": iteration, "optimizers": [torch.ones(1000)], "run": {"manual_seed": 4711}}
    checksums = {
        net: write_checkpoint({"params": {"a": torch.full((1000,), iteration)}}, net),
        state: write_checkpoint(content, state),
    }
    if manifest:
        write_manifest(state, checksums)
    return [net, state, state.with_suffix(".sha256")]


def test_a_checkpoint_makes_its_folders_anew(run: Path) -> None:
    """polyaxon#710: someone has cleared the run's folder."""
    shutil.rmtree(run)
    save(run, 3)
    assert resume(options(run))["path"]["pretrain_network_g"] == str(run / "models/net_g_3.pth")


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net_g_latest.pth"
    write_checkpoint({"params": {"a": torch.ones(3)}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="net_g_latest.pth cannot be saved.*B free on its disk"):
            write_checkpoint({"params": {"a": torch.ones(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(torch.load(path, weights_only=True)["params"]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_is_retried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, fsync = [OSError(errno.EDQUOT, "Disk quota exceeded")], atomic_io.os.fsync

    def fail_once(handle: int) -> None:
        if failures:
            raise failures.pop()
        fsync(handle)

    monkeypatch.setattr(atomic_io.os, "fsync", fail_once)
    checksum = write_checkpoint({"iter": 1}, tmp_path / "1.state")
    assert failures == []
    assert hashlib.sha256((tmp_path / "1.state").read_bytes()).hexdigest() == checksum
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/1\.state"):
        write_checkpoint({"iter": 1}, tmp_path / "file" / "1.state")


@pytest.mark.parametrize("manifest", [True, False])
def test_auto_resume_uses_the_newest_checkpoint(manifest: bool, run: Path) -> None:
    """With the seed of its state: a run without manual_seed draws one, on which the samples depend."""
    assert find_resume_point(options(run)) is None
    for iteration in (5, 20, 100):
        save(run, iteration, manifest)
    (run / "training_states/best.state").touch()
    opt = options(run)
    resumed = resume(opt)
    assert resumed["path"]["pretrain_network_g"] == str(run / "models/net_g_100.pth")
    assert (resumed["manual_seed"], opt["manual_seed"]) == (4711, 1)
    assert find_resume_point(options(run, auto_resume=False)) is None


SEALED = [
    (how, file) for how in ("gone", "empty", "cut", "flipped") for file in (0, 1, 2) if (how, file) != ("gone", 2)
]
UNSEALED = [("gone", 0), ("empty", 0), ("cut", 0), ("empty", 1), ("cut", 1)]  # damage that prevents loading


def test_a_machine_that_does_not_see_the_run_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2#1732: rank 0 names a state of its own disk."""
    monkeypatch.setattr("dp_basicsr.checkpoint.resume.on_rank_0", lambda _: run / "training_states/5.state")
    with pytest.raises(UserError, match=r"5\.state is on the first machine alone.*shared or copied"):
        find_resume_point(options(run) | {"rank": 1})
    # diffusers#2091: one that no machine has.
    monkeypatch.setattr("dp_basicsr.checkpoint.resume.on_rank_0", lambda function: function())
    opt = options(run)
    opt["path"]["resume_state"] = str(run / "training_states/99.state")
    with pytest.raises(UserError, match=r"99\.state cannot be read .No such file"):
        find_resume_point(opt | {"rank": 1})
    opt["path"]["resume_state"] = "None"
    with pytest.raises(
        UserError, match=r"None cannot be read .No such file or directory.; nothing is ~ or null in YAML"
    ):
        find_resume_point(opt)


@pytest.mark.parametrize(
    ("manifest", "how", "file"), [(True, *case) for case in SEALED] + [(False, *c) for c in UNSEALED]
)
def test_auto_resume_skips_damaged_checkpoints(
    manifest: bool, how: str, file: int, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a file of the newest checkpoint is damaged, the previous one is used; without an intact one nothing starts."""
    save(run, 5, manifest)
    path = save(run, 20, manifest)[file]
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"gone": b"", "empty": b"", "cut": content[:middle], "flipped": flipped}[how])
    if how == "gone":
        path.unlink()
    point = find_resume_point(options(run))
    assert point is not None
    assert point.state["iter"] == 5
    assert "iteration 20 is skipped" in caplog.text
    assert path.name in caplog.text
    (run / "models/net_g_5.pth").unlink()
    reasons = rf"none of the checkpoints.*intact.*20: .*{path.name}.*5: .*net_g_5\.pth"
    with pytest.raises(UserError, match=reasons):
        resume(options(run))


def test_sha256sum_reads_the_manifest_which_must_not_list_files_outside(run: Path) -> None:
    manifest = save(run, 5)[2]
    if program := shutil.which("sha256sum"):
        subprocess.run([program, "-c", "training_states/5.sha256"], cwd=run, check=True, capture_output=True)
    (run.parent / "outside").write_text("keep me")
    line = f"{hashlib.sha256(b'keep me').hexdigest()}  ../outside\n"
    manifest.write_text(line + manifest.read_text())
    with pytest.raises(UserError, match="outside"):
        check_manifest(manifest)


def test_keep_last_keeps_the_newest(run: Path) -> None:
    """Later checkpoints of another attempt are kept, and remains of an earlier kill or deletion are removed."""
    files = {iteration: save(run, iteration, manifest=iteration != 2) for iteration in (1, 2, 3, 10, 20)}
    files[1][0].unlink()
    orphan = run / "models/net_d_2.pth"
    others = [run / "models" / name for name in ("net_g_latest.pth", "net_g_best_set_5_psnr_1.pth")]
    for path in (orphan, *others):
        path.touch()
    delete_older(files[10][1], run / "models", keep=2)
    assert {iteration for iteration, paths in files.items() if paths[1].exists()} == {3, 10, 20}
    assert not any(path.exists() for path in (*files[1], *files[2], orphan))
    assert all(path.exists() for path in others)


def test_reasons_for_inexact_resume_are_logged() -> None:
    opt = {"world_size": 2, "num_gpu": 0, "manual_seed": 1}
    position = {"batch_size": 4, "epoch_size": 10, "names": 1}
    facts = run_metadata(opt)
    assert list(resume_warnings(opt, {"iter": 3, "run": facts, "position": position}, position)) == []
    other = {
        "iter": 3,
        "run": facts | {"processes": 4, "torch": "2.6.0", "amp": "fp16"},
        "position": position | {"batch_size": 8, "names": 2},
    }
    lines = "\n".join(resume_warnings(opt, other, position))
    # amp: NVIDIA/apex#250
    told = ("processes: 4 before, 2 now", "torch: 2.6.0 before", "batch_size: 8 before", "amp: fp16 before, none now",
            "train: files of other names")  # fmt: skip
    assert all(part in lines for part in told)
    assert "BasicSR's or an older" in next(resume_warnings(opt, {"iter": 3}, position))


@pytest.mark.parametrize("manifest", [True, False])
def test_networks_that_the_model_lacks_are_not_required(manifest: bool, run: Path) -> None:
    """An L1 stage with overrides of a GAN's file, in which network_d is present or null."""
    save(run, 5, manifest)
    (run / "own.pth").write_bytes((run / "models/net_g_5.pth").read_bytes())
    opt = options(run) | {"network_d": {}, "network_e": {}}
    opt["path"] |= {"ignore_resume_networks": ["network_e"], "pretrain_network_e": str(run / "own.pth")}
    opt = resume(opt)
    assert opt["path"]["pretrain_network_g"] == str(run / "models/net_g_5.pth")
    assert opt["path"]["pretrain_network_d"] is None
    assert opt["path"]["pretrain_network_e"] == str(run / "own.pth")


def test_a_damaged_state_is_named(run: Path) -> None:
    state = save(run, 7)[1]
    for content in (state.read_bytes()[:500], b""):
        state.write_bytes(content)
        with pytest.raises(UserError, match=r"7\.state"):
            read_state(state)
    write_checkpoint({"params": {}}, state)
    with pytest.raises(UserError, match="not a training state"):
        read_state(state)


def test_the_named_state_must_be_intact(run: Path) -> None:
    opt = options(run, auto_resume=False)
    save(run, 5)[0].write_bytes(b"half of a file")
    for named, missing in ((f"{run}/training_states/5.state", r"s/5\.state.*: net_g_5\.pth.*; name another"),
                           ("nowhere.state", r"nowhere\.state")):  # fmt: skip
        opt["path"]["resume_state"] = named
        with pytest.raises(UserError, match=missing):
            resume(opt)


def test_auto_resume_says_why_a_run_with_networks_begins_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RVC-WebUI#1954, pytorch-CycleGAN-and-pix2pix#1116: states deleted for room, or not copied."""
    caplog.set_level(logging.WARNING, "basicsr")
    assert find_resume_point(options(run)) is None
    assert not caplog.messages
    for file in save(run, 5)[1:]:
        file.unlink()
    assert find_resume_point(options(run)) is None
    (text,) = caplog.messages
    assert "begins a new run" in text
    assert "pretrain_network_g" in text


def test_auto_resume_says_that_a_run_s_name_differs_in_unicode_s_form_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "basicsr")
    (tmp_path / "caf\u00e9/training_states").mkdir(parents=True)
    assert find_resume_point(options(tmp_path / "cafe\u0301")) is None
    assert "Unicode's form" in "".join(caplog.messages)


def test_a_link_to_a_state_is_that_state(run: Path) -> None:
    """Lightning#19251: ``last.ckpt``, here in another folder, which has no networks beside it."""
    save(run, 5)
    Path("last.state").symlink_to(run / "training_states/5.state")
    opt = options(run, auto_resume=False)
    opt["path"]["resume_state"] = "last.state"
    assert resume(opt)["path"]["pretrain_network_g"].endswith("/models/net_g_5.pth")


def test_a_named_state_says_where_its_networks_belong(run: Path) -> None:
    save(run, 5)[0].rename(run / "net_g_5.pth")
    (run / "training_states/5.sha256").unlink()
    opt = options(run, auto_resume=False)
    opt["path"]["resume_state"] = str(run / "training_states/5.state")
    with pytest.raises(UserError, match=r"5.state needs its networks in ../models, .*no such file: .*net_g_5.pth"):
        resume(opt)
