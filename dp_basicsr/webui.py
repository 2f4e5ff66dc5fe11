"""Serve a web page to upscale images with.

%(prog)s -m MODEL.pth ...
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.utils.arguments import Parser
from dp_basicsr.utils.console import data_command

MODEL_SUFFIXES = (".pth", ".safetensors", ".onnx", ".param")


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the model files by the names that the page shows; of a folder all with one of ``MODEL_SUFFIXES``.

    Raises:
        UserError: There is none, or two have the same name.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        files += [file for file in inside if file.suffix in MODEL_SUFFIXES and not file.name.startswith("net_d_")]
        files += [] if path.is_dir() else [path]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"--model_path: no such file: {', '.join(missing) or ', '.join(map(str, paths))}")
    models = {file.name: file for file in files}
    if len(models) < len(files):
        raise UserError(f"--model_path: two files have one name: {', '.join(map(str, files))}")
    return models


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_model(required=True, help="models, or folders of models")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    add("--port", type=int, default=7860, help="port; 0: any free one")
    add("--max-megapixels", type=float, default=4.0, help="largest image accepted")
    add("--max-megabytes", type=int, default=64, help="largest file accepted")
    add("--tile", type=int, help="pixels of a tile (default: what suits the device)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``--help``."""
    args = parse(argv)
    with data_command(), tempfile.TemporaryDirectory(prefix="dp_basicsr_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads; removed with the folder
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        models = find_models(args.model_path)
        from dp_basicsr.deploy.page import Page, build  # takes seconds: torch and Gradio

        pixels = int(args.max_megapixels * 1e6)
        blocks = build(Page(models, Path(folder), pixels, args.device, args.tile))
        from gradio.themes import Default

        _, url, _ = blocks.launch(
            server_name=args.host, server_port=args.port or None, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=f"{args.max_megabytes}mb", allowed_paths=[], show_error=True, inbrowser=False,
            theme=Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the network
        )  # fmt: skip
        print(f"open {url} (stop with Ctrl-C)", flush=True)
        blocks.block_thread()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
