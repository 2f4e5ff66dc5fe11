"""The page to upscale images with: what it does (``Page``), and how it looks (``build``, with Gradio)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.upscale_picture import upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.picture import Picture
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import write_picture
from dp_basicsr.utils.tiles import OnTile

from PIL import Image

try:  # here, because Gradio looks up the handlers' annotations among the module's names
    import gradio as gr
except ImportError:
    gr = None  # type: ignore[assignment]

POLL_SECONDS = 0.2
TITLE = "dp_basicsr: upscale an image"
CROP = 192  # pixels, side of the crop to try first
ALONE = "(none)"
STRENGTH = 0.8  # share of the second model, ESRGAN's example


class Cancelled(Exception):  # noqa: N818  (not an error: the visitor asked for it)
    """The visitor stopped the work."""


@dataclass(frozen=True)
class Task:
    """What to do with an image.

    Attributes:
        model: Name of the model.
        alpha: How transparency is upscaled.
        other: Name of a second model to blend with, or None.
        strength: Share of the second model, 0 to 1.
        is_trial: Only a crop from the middle.
    """

    model: str
    alpha: AlphaMode = "model"
    other: str | None = None
    strength: float = STRENGTH
    is_trial: bool = False


@dataclass(frozen=True)
class Result:
    """What the page shows and offers: the input as a PNG that every browser knows, and the result."""

    before: Path
    after: Path


@dataclass
class Session:
    """What is kept of a visitor until the session ends."""

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)


class Page:
    """What the page does, apart from how it looks.

    Args:
        models: Name shown -> file.
        folder: For results and uploads; nothing else is served.
        max_pixels: Largest input.
        device: See ``open_engine``.
        tile: See ``Upscaler``.
    """

    def __init__(
        self, models: dict[str, Path], folder: Path, max_pixels: int, device: str = "auto", tile: int | None = None
    ) -> None:
        self.models = models
        self.folder = folder
        self.max_pixels = max_pixels
        self.device = device
        self.tile = tile
        self._loaded: tuple[tuple[str | float | None, ...], Upscaler] | None = None
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def cancel(self, session: str) -> None:
        """Stop the work of a visitor at the end of the current tile."""
        if session in self._sessions:
            self._sessions[session].stop.set()

    def keep(self, session: str, upload: Path | None) -> Session:
        """Note an upload of a visitor, for ``close`` to delete."""
        with self._lock:
            if session not in self._sessions:
                self._sessions[session] = Session(Path(tempfile.mkdtemp(dir=self.folder)))
            if upload is not None:
                self._sessions[session].uploads.add(upload.resolve())
            return self._sessions[session]

    def close(self, session: str) -> None:
        """Stop the work of a visitor who has left, and delete the uploads and results."""
        with self._lock:
            ended = self._sessions.pop(session, None)
            in_use = {upload for other in self._sessions.values() for upload in other.uploads}
        if ended is None:
            return
        ended.stop.set()
        for upload in ended.uploads - in_use:  # Gradio stores equal files once
            if self.folder.resolve() in upload.parents:
                upload.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    upload.parent.rmdir()
        shutil.rmtree(ended.folder, ignore_errors=True)

    def upscale(self, session: str, image: Path | None, task: Task) -> Iterator[float | Result]:
        """Upscale one image in a thread.

        Yields:
            The finished share, 0 to 1; at the end the result (PNG, with the metadata of the input).

        Raises:
            UserError: There is no image, it is too large or of an unsupported type, or the models do not fit.
            Cancelled: ``cancel`` or ``close`` was called for this session.
        """
        if image is None:
            raise UserError("choose an image first")
        self.cancel(session)
        visitor = self.keep(session, image)
        stop = visitor.stop = threading.Event()
        progress, outcome = [0.0], list[Result | BaseException]()

        def on_tile(done: int, total: int) -> None:
            progress[0] = done / total
            if stop.is_set():
                raise Cancelled

        def work() -> None:
            try:
                outcome.append(self._upscale(image, task, visitor.folder, on_tile))
            except BaseException as error:
                outcome.append(error)
            if self._sessions.get(session) is not visitor:  # closed meanwhile
                shutil.rmtree(visitor.folder, ignore_errors=True)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not stop.is_set():
                yield progress[0]
                thread.join(POLL_SECONDS)
        finally:
            stop.set()  # the visitor has left
        if not outcome or self._sessions.get(session) is not visitor:
            raise Cancelled
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def _upscale(self, image: Path, task: Task, folder: Path, on_tile: OnTile) -> Result:
        upscaler = self._upscaler(task)
        try:
            picture = read_picture(image, self.max_pixels)
        except BadImageError as error:
            raise UserError(f"the image {error}") from error
        picture = crop_middle(picture, CROP) if task.is_trial else picture
        upscaled = upscale_picture(picture, upscaler, alpha_mode=task.alpha, on_tile=on_tile)
        earlier = list(folder.iterdir())
        place = Path(tempfile.mkdtemp(dir=folder))
        name = f"{image.stem}_{'crop_' if task.is_trial else ''}x{upscaler.scale}.png"
        result = Result(place / "before.png", place / name)
        write_picture(picture, result.before)
        write_picture(upscaled, result.after)
        for old in earlier:
            shutil.rmtree(old, ignore_errors=True)
        return result

    def _upscaler(self, task: Task) -> Upscaler:
        """Return the network, which stays loaded until another one is asked for."""
        names = [task.model] if task.other is None else [task.model, task.other]
        if unknown := [name for name in names if name not in self.models]:
            raise UserError(f"unknown model {unknown[0]!r}")
        strength = None if task.other is None else task.strength
        key = (*names, strength)
        if self._loaded is None or self._loaded[0] != key:
            engine = open_engine(
                [self.models[name] for name in names],
                engine="auto" if strength is None else "torch",  # not a conversion for each strength
                alpha_interp=strength,
                device=self.device,
                warn=print,
            )
            self._loaded = key, Upscaler(engine, tile=self.tile, warn=print)
        return self._loaded[1]


def crop_middle(picture: Picture, side: int) -> Picture:
    """Return at most ``side`` x ``side`` pixels from the middle."""
    top, left = (max(length - side, 0) // 2 for length in picture.colour.shape[:2])
    rows, columns = slice(top, top + side), slice(left, left + side)
    alpha = None if picture.alpha is None else picture.alpha[rows, columns]
    return replace(picture, colour=picture.colour[rows, columns], alpha=alpha)


def build(page: Page) -> Any:
    """Build the Gradio page (``gradio.Blocks``) for ``page``.

    Raises:
        UserError: Gradio is not installed.
    """
    if gr is None:
        raise UserError("the page needs Gradio: pip install 'dp_basicsr[webui]'")

    def run(is_trial: bool) -> Callable[..., Iterator[list[Any]]]:
        def handle(
            image: str | None, model: str, other: str, strength: float, alpha: AlphaMode, request: gr.Request
        ) -> Iterator[list[Any]]:
            task = Task(model, alpha, None if other == ALONE else other, strength, is_trial)
            yield from _show(page, str(request.session_hash), None if image is None else Path(image), task)

        return handle

    def keep(image: str | None, request: gr.Request) -> None:
        page.keep(str(request.session_hash), None if image is None else Path(image))

    def cancel(request: gr.Request) -> None:
        page.cancel(str(request.session_hash))

    def close(request: gr.Request) -> None:
        page.close(str(request.session_hash))

    names, has_two = list(page.models), len(page.models) > 1
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}\nUp to {page.max_pixels / 1e6:g} megapixels, 8 or 16 bits, PNG, JPEG, WebP or TIFF.")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.File(label="Image", file_count="single", type="filepath", elem_id="image")
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                other = gr.Dropdown([ALONE, *names], value=ALONE, label="Blend with", elem_id="other", visible=has_two)
                strength = gr.Slider(
                    0, 1, STRENGTH, step=0.05, label="Strength: share of the second model", elem_id="strength",
                    visible=has_two,
                )  # fmt: skip
                alpha = gr.Radio(list(get_args(AlphaMode)), value="model", label="Transparency")
                with gr.Row():
                    start = gr.Button("Upscale", variant="primary", elem_id="start")
                    trial = gr.Button("Try a crop", elem_id="trial")
                    stop = gr.Button("Cancel", interactive=False, elem_id="stop")
                status = gr.Markdown("", elem_id="status")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
            with gr.Column(scale=3):
                slider = gr.ImageSlider(label="Before and after", type="filepath", interactive=False, elem_id="slider")
        inputs, outputs = [image, model, other, strength, alpha], [status, slider, download, stop]
        for button in (start, trial):
            button.click(
                run(button is trial), inputs, outputs, show_progress="hidden", concurrency_limit=1, concurrency_id="run"
            )
        stop.click(cancel, None, None, queue=False)
        image.upload(keep, image, None, queue=False)
        blocks.unload(close)
    return blocks


def _show(page: Page, session: str, image: Path | None, task: Task) -> Iterator[list[Any]]:
    """Yield what status, slider, download and cancel show while an image is upscaled."""
    idle, busy = gr.update(interactive=False), gr.update(interactive=True)
    start = time.monotonic()
    try:
        for step in page.upscale(session, image, task):
            if isinstance(step, Result):
                size = "{} x {} pixels".format(*Image.open(step.after).size)
                done = f"Done in {time.monotonic() - start:.0f} s: {size}."
                both = str(step.before), str(step.after)
                yield [done, both, gr.update(value=both[1], interactive=True), idle]
            else:
                yield [f"Working: {step:.0%}", gr.skip(), gr.update(interactive=False), busy]
    except Cancelled:
        yield ["Cancelled.", gr.skip(), gr.skip(), idle]
    except Exception as error:  # shown to the visitor, whatever it is
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        yield [f"**Not done:** {kind}{error}", gr.skip(), gr.skip(), idle]
