"""What the package is and needs; how to install it is in README.md, tool settings are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

PLOTS = ["matplotlib"]  # loss curves, figures, and the demo's picture
REPORT = [*PLOTS, "Jinja2"]  # scripts/make_report.py
WANDB = ["wandb"]  # logger: wandb
EXPORT = ["onnx", "onnxruntime", "onnxscript"]  # scripts/export_model.py --format onnx, and running the file
WEBUI = ["gradio>=6"]  # python -m dp_basicsr.webui
DEV = [
    *EXPORT,
    *REPORT,
    *WEBUI,
    "hypothesis",  # tests/test_fuzz_*.py
    "jsonschema",  # the tests' reader of options/schema.json
    "mypy",
    "pre-commit",
    "pytest>=8",
    "pytest-xdist",  # make test: two processes
    "ruff",
    "selenium",  # the tests of the report and the page, in a Chromium that is there (.ci/run installs one)
    "setuptools",  # tests/test_package.py builds the wheel
    "spandrel",  # what chaiNNer and ComfyUI load models with: the tests' oracle
    "types-PyYAML",
    "types-tqdm",
]


def read_version() -> str:
    """``__version__`` of the package, read as text: importing it would need what is about to be installed."""
    source = (ROOT / "dp_basicsr" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise ValueError('dp_basicsr/__init__.py: expected a line __version__ = "...", found none')
    return match.group(1)


setup(
    name="dp_basicsr",
    version=read_version(),
    description="Dual Perceptual Loss for single image super-resolution (ESRGAN-DP), as a BasicSR plugin",
    license="Apache-2.0",
    keywords=["super-resolution", "perceptual loss", "ESRGAN", "BasicSR"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["dp_basicsr", "dp_basicsr.*"]),
    package_data={"dp_basicsr.report": ["report.*"], "dp_basicsr.studies": ["paper.yml"]},
    python_requires=">=3.10",
    # Lower bounds only: today's releases must work, and a CUDA or CPU build is the user's choice.
    install_requires=[
        "basicsr>=1.4.2",
        "lmdb",
        "lpips",
        "numpy",
        "opencv-python",
        "pillow",
        "pydantic>=2.7",  # option files are checked by its models; descriptions from docstrings
        "pyyaml",
        "safetensors",
        "scipy",  # rank correlation (Table 5)
        "tifffile",
        "torch>=2.6",  # torch.load is weights_only unless told otherwise
        "torchvision>=0.21",  # the release that goes with torch 2.6
        "tqdm",
    ],
    extras_require={
        "dev": DEV,
        "export": EXPORT,
        "plots": PLOTS,
        "report": REPORT,
        "wandb": WANDB,
        "webui": WEBUI,
    },
    entry_points={
        "console_scripts": [
            "dp-basicsr-train = dp_basicsr.train:main",
            "dp-basicsr-test = dp_basicsr.test:main",
            "dp-basicsr-upscale = dp_basicsr.inference:main",
        ]
    },
)
