"""The documentation: links are valid, and the files, options and code it shows exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from dp_basicsr.deploy.choices import ENGINES, EXPORTS
from dp_basicsr.utils.arguments import COMMANDS

import pytest
import yaml

from tests.support.programs import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "datasets/README.md"))]

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def text_without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", text_without_code(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_without_code(path)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_document
def test_files_that_are_named_exist(path: Path) -> None:
    folders = "dp_basicsr|benchmarks|examples|scripts|tests|options"
    names = re.findall(rf"\b(?:{folders})/[\w./]*\.(?:py|yml|json|sbatch)\b", path.read_text("utf-8"))
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_the_tables_of_engines_and_formats_are_the_records() -> None:
    text = (ROOT / "docs/inference.md").read_text(encoding="utf-8")
    for name, engine in ENGINES.items():
        needs = f"extra `{engine.extra}` " if engine.extra else ""
        assert f"| `{name}` | {engine.runs_on} | {needs}|" in text
    for name, kind in EXPORTS.items():
        assert f"| `{name}` | {kind.content} | {kind.check} |" in text


def test_tests_that_are_named_exist() -> None:
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"\| `(test_\w+)` \|$", (ROOT / "docs/reliability.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


@every_document
def test_commands_have_the_options_that_are_shown(path: Path) -> None:
    package = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "dp_basicsr").rglob("*.py"))
    for block in code_blocks(path, "(?:bash)?"):
        for command in block.replace("\\\n", " ").splitlines():
            typed = command.partition(" #")[0]
            script = re.search(r"python.* ((?:scripts|dp_basicsr)/\w+\.py)(.*)", typed)
            ours = re.search(r"\bdp-basicsr ((?:data )?[a-z]+)(.*)", typed)
            assert ours is None or ours[1] in COMMANDS, command
            if given := script or ours:
                source = package + ((ROOT / given[1]).read_text(encoding="utf-8") if script else "")
                flags = [flag.replace("_", "-") for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", given[2])]
                assert [flag for flag in flags if f'"{flag}"' not in source] == [], command


@every_document
def test_code_blocks_can_be_parsed(path: Path) -> None:
    for block in code_blocks(path, "python"):
        compile(block, str(path), "exec")
    for block in code_blocks(path, "yaml"):
        yaml.safe_load(block)


def test_pages_begin_with_their_use_and_end_with_their_limits() -> None:
    for path in (page for page in PAGES if page.parent.name == "docs" and page.name != "index.md"):
        title, first, *_ = text_without_code(path).split("\n\n")
        assert title.startswith("# "), path
        assert not first.startswith("#"), path
        headings = re.findall(r"^## (.+)$", text_without_code(path), flags=re.MULTILINE)
        assert (headings[0], headings[-1]) == ("Use", "Limits"), path


def page_names(nav: Any) -> list[str]:
    """The files of MkDocs' ``nav``."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [name for entry in entries for name in page_names(entry)]


def test_every_page_is_in_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(page_names(site["nav"])) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


@pytest.mark.parametrize("room", ["archs", "losses", "metrics", "models"])
def test_public_names_are_listed_and_have_their_api_entry(room: str) -> None:
    source = (ROOT / f"dp_basicsr/{room}/__init__.py").read_text(encoding="utf-8")
    public = ast.literal_eval(source.partition("__all__ = ")[2])
    pages = ROOT / "docs/api"
    assert [name for name in public if f"`{name}`" not in (pages / "index.md").read_text(encoding="utf-8")] == []
    if room != "metrics":
        page = (pages / f"{room}.md").read_text(encoding="utf-8")
        assert [name for name in public if f"::: dp_basicsr.{room}.{name}\n" not in page] == []


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs/images").iterdir()]
    assert [picture.name for picture in pictures if picture.stat().st_size > 200_000] == []
    assert pictures
