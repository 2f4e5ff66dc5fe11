"""The page to upscale images with: what it does (``Page``), and how it looks (``build``, with Gradio)."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dp_basicsr.data.images import BadImageError
from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.deploy.decode import read_picture
from dp_basicsr.deploy.encode import write_picture
from dp_basicsr.deploy.network import load_network
from dp_basicsr.deploy.picture import upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError
from dp_basicsr.utils.tiles import OnTile

from PIL import Image

try:  # here, because Gradio looks up the handlers' annotations among the module's names
    import gradio as gr
except ImportError:
    gr = None  # type: ignore[assignment]

POLL_SECONDS = 0.2
TITLE = "dp_basicsr: upscale an image"


class Cancelled(Exception):  # noqa: N818  (no error: somebody asked for it)
    """The work was stopped by its user."""


@dataclass(frozen=True)
class Result:
    """What the page shows and offers: the input as a PNG that every browser knows, and the result."""

    before: Path
    after: Path


class Page:
    """What the page does, apart from how it looks.

    Args:
        models: Name shown -> file.
        folder: Where results go; nothing else is served.
        max_pixels: Largest input.
        device: See ``Upscaler``.
        tile: Likewise.
    """

    def __init__(
        self, models: dict[str, Path], folder: Path, max_pixels: int, device: str = "auto", tile: int | None = None
    ) -> None:
        self.models = models
        self.folder = folder
        self.max_pixels = max_pixels
        self.device = device
        self.tile = tile
        self._loaded: tuple[str, Upscaler] | None = None
        self._stops: dict[str, threading.Event] = {}

    def cancel(self, session: str) -> None:
        """Stop the work of one visitor, at the end of the tile that is under way."""
        if session in self._stops:
            self._stops[session].set()

    def upscale(self, session: str, image: Path | None, model: str, alpha: AlphaMode) -> Iterator[float | Result]:
        """Upscale one image in a thread.

        Yields:
            The share that is done, 0 to 1; at the end the result (PNG, with what the input had).

        Raises:
            UserError: No image, too large, of a kind that cannot be kept.
            Cancelled: ``cancel`` was called for this session.
        """
        if image is None:
            raise UserError("choose an image first")
        self.cancel(session)
        stop = self._stops[session] = threading.Event()
        progress, outcome = [0.0], list[Result | BaseException]()

        def on_tile(done: int, total: int) -> None:
            progress[0] = done / total
            if stop.is_set():
                raise Cancelled

        def work() -> None:
            try:
                outcome.append(self._upscale(image, model, alpha, on_tile))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not stop.is_set():
                yield progress[0]
                thread.join(POLL_SECONDS)
        finally:
            stop.set()  # the visitor has left
        if not outcome:
            raise Cancelled
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def _upscale(self, image: Path, model: str, alpha: AlphaMode, on_tile: OnTile) -> Result:
        upscaler = self._upscaler(model)
        try:
            picture = read_picture(image, self.max_pixels)
        except BadImageError as error:
            raise UserError(f"the image {error}") from error
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        result = Result(folder / "before.png", folder / f"{image.stem}_x{upscaler.scale}.png")
        write_picture(picture, result.before)
        write_picture(upscale_picture(picture, upscaler, alpha_mode=alpha, on_tile=on_tile), result.after)
        return result

    def _upscaler(self, model: str) -> Upscaler:
        """The network of that name; the last one stays loaded."""
        if model not in self.models:
            raise UserError(f"unknown model {model!r}")
        if self._loaded is None or self._loaded[0] != model:
            network = load_network([self.models[model]], device=self.device)
            self._loaded = model, Upscaler(network, device=self.device, tile=self.tile, tell=print)
        return self._loaded[1]


def build(page: Page) -> Any:
    """Build the Gradio page (``gradio.Blocks``) for ``page``.

    Raises:
        UserError: Gradio is not installed.
    """
    if gr is None:
        raise UserError("the page needs Gradio: pip install '.[webui]'")

    def run(image: str | None, model: str, alpha: AlphaMode, request: gr.Request) -> Iterator[list[Any]]:
        session = str(request.session_hash)
        idle, busy = gr.update(interactive=False), gr.update(interactive=True)
        start = time.monotonic()
        try:
            for step in page.upscale(session, None if image is None else Path(image), model, alpha):
                if isinstance(step, Result):
                    size = "{} x {} pixels".format(*Image.open(step.after).size)
                    done = f"Done in {time.monotonic() - start:.0f} s: {size}."
                    both = str(step.before), str(step.after)
                    yield [done, both, gr.update(value=both[1], interactive=True), idle]
                else:
                    yield [f"Working: {step:.0%}", gr.skip(), gr.update(interactive=False), busy]
        except Cancelled:
            yield ["Cancelled.", gr.skip(), gr.skip(), idle]
        except Exception as error:  # whatever it is, the visitor is told
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            yield [f"**Not done:** {kind}{error}", gr.skip(), gr.skip(), idle]

    def cancel(request: gr.Request) -> None:
        page.cancel(str(request.session_hash))

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}\nUp to {page.max_pixels / 1e6:g} megapixels, 8 or 16 bits, PNG, JPEG, WebP or TIFF.")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.File(label="Image", file_count="single", type="filepath", elem_id="image")
                model = gr.Dropdown(list(page.models), value=next(iter(page.models)), label="Model", elem_id="model")
                alpha = gr.Radio(list(get_args(AlphaMode)), value="model", label="Transparency")
                with gr.Row():
                    start = gr.Button("Upscale", variant="primary", elem_id="start")
                    stop = gr.Button("Cancel", interactive=False, elem_id="stop")
                status = gr.Markdown("", elem_id="status")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
            with gr.Column(scale=3):
                slider = gr.ImageSlider(label="Before and after", type="filepath", interactive=False, elem_id="slider")
        start.click(
            run, [image, model, alpha], [status, slider, download, stop], show_progress="hidden", concurrency_limit=1
        )
        stop.click(cancel, None, None, queue=False)
        blocks.unload(cancel)
    return blocks
