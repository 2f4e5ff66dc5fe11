"""What pyproject.toml cannot say: the option files are package data, and README's links work on PyPI too."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

# The public home of the project; where none is given, links within the project become plain text.
HOME = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}" if "GITHUB_REPOSITORY" in os.environ else ""


def absolute_links(text: str) -> str:
    """Return Markdown whose links to files lead to ``HOME``; without a home pictures go and links are plain text."""
    picture, link = r"!\[([^]]*)\]\((?!https?:)([^)\s]+)\)", r"(?<!!)\[([^]]*)\]\((?!https?:|#)([^)\s]+)\)"
    text = re.sub(picture, rf"![\1]({HOME}/raw/main/\2)" if HOME else "", text)
    return re.sub(link, rf"[\1]({HOME}/blob/main/\2)" if HOME else r"\1", text)


# setuptools would pack what an earlier build left there, also modules that are gone or renamed since.
shutil.rmtree(Path(__file__).with_name("build") / "lib", ignore_errors=True)

# An editable install is a path, for which setuptools asks for a plain layout. Its other way, a finder, comes after the
# folder of a clone: `dp_basicsr` beside where Python was started would be the package.
is_editable = "editable_wheel" in sys.argv

setup(
    packages=[*find_packages(include=["dp_basicsr", "dp_basicsr.*"]), "dp_basicsr.networks",
              *([] if is_editable else ["dp_basicsr.option_files", "dp_basicsr.option_files.studies"])],
    package_dir={"": "."} if is_editable else {"dp_basicsr.option_files": "options"},
    long_description=absolute_links(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    project_urls={"Paper": "https://arxiv.org/abs/2201.06383", **({"Source": HOME} if HOME else {})},
)  # fmt: skip
