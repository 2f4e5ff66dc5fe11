"""The table of sources is consistent and matches the published counts."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from dp_basicsr.data.downloads.catalogue import SOURCES, download_dataset

import pytest

from tests.support.images import write_noise


def test_every_source_is_complete() -> None:
    for name, source in SOURCES.items():
        assert source.url.startswith("https://"), name
        assert source.file_name.endswith((".zip", ".tar.gz")), name
        assert source.by_hand, name
        assert not source.target.is_absolute(), name
        if source.checksum:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", source.checksum), name
        # A URL is pinned by a checksum, or by the revision in it.
        assert source.checksum or re.search(r"/resolve/[0-9a-f]{40}/", source.url), name


def test_counts_and_paths_match_the_option_files() -> None:
    places = {name: (str(source.target), source.images) for name, source in SOURCES.items()}
    assert places["div2k"] == ("DIV2K/DIV2K_train_HR", 800)
    assert places["div2k_lr_x4"] == ("DIV2K/DIV2K_train_LR_bicubic/X4", 800)
    for folder, count in {"Set5": 5, "Set14": 14, "BSD100": 100, "Urban100": 100}.items():
        assert places[folder.lower()] == (f"{folder}/GT", count)
    assert len({source.file_name for source in SOURCES.values()}) == len(SOURCES)
    assert len({source.target for source in SOURCES.values()}) == len(SOURCES)


@pytest.mark.parametrize(("name", "options"), [("div2k", ["-i"]), ("div2k_lr_x4", ["--scale", "4", "--lr-input"])])
def test_the_next_command_takes_paths_with_blanks(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], images=1))
    images = Path("my data", SOURCES[name].target)
    write_noise(images / "a.png", 9, 7)
    command = download_dataset(name, Path("my data")).partition("next: ")[2]
    assert shlex.split(command) == ["dp-basicsr", "data", "extract", *options, str(images)]
