"""Package metadata and dependencies. docs/installation.md says how to install; pyproject.toml has the tool settings."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

PLOTS = ["matplotlib"]  # loss curves, figures, and the demo's picture
REPORT = [*PLOTS, "Jinja2"]  # scripts/make_report.py
WANDB = ["wandb"]  # logger: wandb
EXPORT = [  # scripts/export_model.py --format onnx or ncnn, and running the files
    "ncnn",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pnnx",
]
OPENVINO = ["openvino"]  # the fastest engine of dp_basicsr/inference.py on a CPU
TIMM = ["timm"]  # feature networks of the loss: network: timm/<name>
WEBUI = ["gradio>=6"]  # python -m dp_basicsr.webui
DOCS = [  # make docs
    "mkdocs<2",  # MkDocs 2 has no themes or plugins
    "mkdocs-material",
    "mkdocstrings[python]",
    'pymdown-extensions<12.1; python_version < "3.11"',  # the last mkdocstrings for Python 3.10 fails with newer ones
]
DEV = [
    *DOCS,
    *EXPORT,
    *OPENVINO,
    *REPORT,
    *TIMM,
    *WEBUI,
    "hypothesis",  # fuzz tests
    "jsonschema",  # tests of options/schema.json
    "mypy",
    "pre-commit",
    "pytest>=8",
    "pytest-xdist",  # make test: two processes
    "ruff",
    "selenium",  # browser tests of the report and the page; needs Chromium, which .ci/run installs
    "setuptools",  # tests/test_package.py builds the wheel
    "types-PyYAML",
    "types-tqdm",
]


def read_version() -> str:
    """Read ``__version__`` as text: importing the package needs dependencies that may not be installed yet."""
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
    # Lower bounds only: current releases must work, and the user chooses a CUDA or CPU build.
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
        "spandrel",  # opens networks of other architectures
        "tifffile",
        "torch>=2.6",  # torch.load is weights_only unless told otherwise
        "torchvision>=0.21",  # the release that goes with torch 2.6
        "tqdm",
    ],
    extras_require={
        "dev": DEV,
        "docs": DOCS,
        "export": EXPORT,
        "openvino": OPENVINO,
        "plots": PLOTS,
        "report": REPORT,
        "timm": TIMM,
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
