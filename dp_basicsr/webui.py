"""Serve a web page to upscale images with.

%(prog)s
%(prog)s -m MODEL.pth ...
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.images.files import missing_hint
from dp_basicsr.utils.arguments import NETWORKS, Parser
from dp_basicsr.utils.console import data_command
from dp_basicsr.utils.file_lock import lock_folder

MODEL_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx", ".param")
PREFIX = "dp_basicsr_web_"  # of the folders for uploads and results


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the model files, at least one, by the names that the page shows; of a folder those of MODEL_SUFFIXES."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        # The weights of ncnn and OpenVINO are no model without the file beside them.
        parts = {f"{file.stem}.bin".lower() for file in inside if file.suffix.lower() in (".param", ".xml")}
        inside = [file for file in inside if file.suffix.lower() in MODEL_SUFFIXES and file.name.lower() not in parts]
        files += [file for file in inside if not file.name.startswith("net_d_")] if path.is_dir() else [path]
    if missing := [str(file) for file in files if file in paths and not file.is_file()]:
        raise UserError(f"--model_path: no such file: {', '.join(missing)}{missing_hint(missing[0])}")
    if not files:
        raise UserError(f"--model_path: no {', '.join(MODEL_SUFFIXES)} in {', '.join(map(str, paths))}: name a file")
    places = {os.path.abspath(file): file for file in files}
    # Not commonpath, which Windows' drives do not have.
    shared = os.path.commonprefix(list(places)).rfind(os.path.sep) + 1  # noqa: RUF071
    # Of several runs, which all have a net_g_latest.pth, with the runs' names.
    has_twins = len({file.name for file in files}) < len(places)
    return {place[shared:] if has_twins else file.name: file for place, file in places.items()}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_model(default=[NETWORKS], help="models, or folders of models (default: the networks in the box)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    root = os.environ.get("GRADIO_ROOT_PATH", "")
    add("--root-path", default=root, help="path below which a proxy serves it: /user/NAME/proxy/PORT of JupyterHub")
    add("--port", type=int, default=7860, help="port, or the next free one; 0: any")
    add("--max-megapixels", type=float, default=16.0, help="largest image accepted")
    add("--max-megabytes", type=int, default=64, help="largest file accepted")
    add("--tile", type=int, help="pixels of a tile (default: what suits the device)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args(argv)
    if args.root_path and "://" not in args.root_path:  # without the first slash Gradio fails at each request
        args.root_path = f"/{args.root_path.strip('/')}".rstrip("/")
    return args


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that goes at the end; delete those of servers that were killed, which hold no lock any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's
            handle, is_ended = lock_folder(path, "delete it where no server runs")
            if is_ended:
                shutil.rmtree(path, ignore_errors=True)
            os.close(handle)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        lock_folder(Path(name), "delete it if the server was killed")
        yield Path(name)


def free_port(host: str, port: int) -> int:
    """Return a port that is free, this one or the next; a UserError if none is, or the address is another machine's."""
    if not 0 <= port < 65536:
        raise UserError(f"--port: expected 0 to 65535, got {port}")
    for candidate in range(port, min(port + 100, 65536)) if port else [0]:
        try:
            with socket.create_server(
                (host, candidate), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            ) as server:
                return int(server.getsockname()[1])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--host {host} --port {candidate}: {error.strerror}") from error
    raise UserError(f"--port {port}: taken, as are those after it")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``--help``."""
    args = parse(argv)
    with data_command(), private_folder() as folder:
        if not (0 < args.max_megapixels < 1e5 and 0 < args.max_megabytes < 1e5):
            raise UserError("expected --max-megapixels and --max-megabytes above 0 and below 100,000")
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # uploads
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        os.environ["no_proxy"] = "*"  # Gradio asks only this server whether it is up, which no proxy can tell
        models = find_models(args.model_path)
        from dp_basicsr.deploy.page import CLOSED, Page
        from dp_basicsr.deploy.page_layout import build  # takes seconds: Gradio

        page = Page(models, folder, int(args.max_megapixels * 1e6), args.device, args.tile)
        page.open(args.model_path)
        blocks = build(page)
        from gradio.themes import Default
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        port = free_port(args.host, args.port)
        if args.port not in (0, port):
            print(f"port {args.port} is taken: this is {port}")
        look = Path(__file__).parent / "deploy"
        app, url, _ = blocks.launch(
            server_name=args.host, server_port=port, root_path=args.root_path or None, share=False, quiet=True,
            prevent_thread_lock=True, max_file_size=f"{args.max_megabytes}mb", allowed_paths=[], show_error=True,
            # Without it, an upload that breaks off prints a traceback; `sweep` deletes what came.
            inbrowser=False, app_kwargs={"exception_handlers": {ClientDisconnect: lambda *_: Response(None, 499)}},
            theme=Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the network
            css_paths=look / "page.css", head=f"<script>{(look / 'page.js').read_text()}</script>", footer_links=[],
        )  # fmt: skip
        app.add_api_route("/leave/{key}", lambda key: page.leave(key, CLOSED), methods=["POST"])
        app.router.routes.insert(0, app.router.routes.pop())  # the last of Gradio's takes every address
        print(f"open {url} (stop with Ctrl-C)", flush=True)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)
                    page.sweep()
        finally:
            page.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
