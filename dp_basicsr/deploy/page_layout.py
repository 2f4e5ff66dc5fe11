"""How the web page looks, with Gradio; ``page.css`` and ``page.js`` belong to it."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.deploy.page import LOST, STRENGTH, Page, Task, Visit, explain
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import QUALITY, READ_SUFFIXES

# Here, because Gradio looks up the handlers' annotations among the module's names.
try:
    import gradio as gr
except ImportError:
    gr = None  # type: ignore[assignment]

POLL_SECONDS = 0.2
ALONE = "(none)"
EXTENSIONS = ("auto", "png", "jpg", "webp", "tif")
# The key of a visit stays with the tab, also when Gradio loads the page anew after a lost connection.
KEY = """() => sessionStorage.visit ||=
    Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16)).join("")"""


def build(page: Page) -> Any:
    """Build the Gradio page (``gradio.Blocks``) for ``page``.

    Raises:
        UserError: Gradio is not installed.
    """
    if gr is None:
        raise UserError("the web page needs Gradio: pip install 'dp_basicsr[webui]'")

    def choose(files: list[str], request: gr.Request) -> Iterator[list[Any]]:
        visit = page.visit(str(request.session_hash))
        try:
            page.choose(visit, [Path(file) for file in files])
        except Exception as error:
            visit.text = explain(error)
        yield from show(page, visit)

    def handle(
        image: str | None, model: str, other: str, strength: float, alpha: AlphaMode, ext: str, quality: float,
        outscale: float, is_trial: bool, request: gr.Request,
    ) -> Iterator[list[Any]]:  # fmt: skip
        visit = page.visit(str(request.session_hash))
        blend = None if other == ALONE else other
        try:
            # Of a program; on the page it was chosen before.
            if image is not None:
                page.choose(visit, [Path(image)])
            page.start(visit, Task(model, blend, strength, alpha, ext, int(quality), outscale or None, is_trial))
        except Exception as error:
            visit.text, visit.job = explain(error), None
        yield from show(page, visit)

    def resume(key: str, request: gr.Request) -> Iterator[list[Any]]:
        yield from show(page, page.visit(str(request.session_hash), key))

    def cancel(request: gr.Request) -> None:
        page.cancel(page.visit(str(request.session_hash)))

    def leave(request: gr.Request) -> None:
        page.leave(str(request.session_hash), LOST)

    names, has_two = list(page.models), len(page.models) > 1
    with gr.Blocks(title="Upscale images", analytics_enabled=False) as blocks:
        with gr.Column(elem_id="image"):
            slider = gr.ImageSlider(
                show_label=False, type="filepath", interactive=False, elem_id="slider", buttons=["fullscreen"]
            )
            status = gr.HTML(elem_id="status")
            with gr.Row(elem_id="buttons"):
                files = gr.UploadButton("Choose images", file_count="multiple", file_types=list(READ_SUFFIXES))
                start = gr.Button("Upscale", variant="primary", elem_id="start")
                stop = gr.Button("Cancel", interactive=False, elem_id="stop")
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")
        with gr.Accordion("More", open=False, elem_id="more"):
            with gr.Row():
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                other = gr.Dropdown([ALONE, *names], value=ALONE, label="Blend with", elem_id="other", visible=has_two)
                strength = gr.Slider(
                    0, 1, STRENGTH, step=0.05, label="Strength: share of the second model", elem_id="strength",
                    visible=has_two,
                )  # fmt: skip
            with gr.Row():
                ext = gr.Dropdown(list(EXTENSIONS), value="auto", label="Format (auto: the image's)", elem_id="ext")
                quality = gr.Slider(1, 100, QUALITY, step=1, label="Quality of JPEG and WebP", elem_id="quality")
                outscale = gr.Slider(0, 8, 0, step=0.5, label="Times as large (0: the model's)", elem_id="outscale")
                alpha = gr.Radio(list(get_args(AlphaMode)), value="model", label="Transparency")
            with gr.Row():
                folder = gr.UploadButton("Choose a folder", file_count="directory", elem_id="folder")
                trial = gr.Button("Try a crop", elem_id="trial")
        key, image = gr.Textbox(visible=False), gr.File(visible=False)
        outputs = [slider, status, download, stop]
        # Gradio would run one handler at a time, but these only wait for the page's own queue.
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        for button, name in ((start, "handle"), (trial, "trial")):
            is_trial = gr.Checkbox(button is trial, visible=False)
            inputs = [image, model, other, strength, alpha, ext, quality, outscale, is_trial]
            button.click(handle, inputs, outputs, api_name=name, **quiet)
        for upload in (files, folder):
            upload.upload(choose, upload, outputs, api_visibility="private", **quiet)
        blocks.load(resume, key, outputs, js=KEY, api_visibility="private", **quiet)
        # Not queued, because it must be heard while a handler still shows the work.
        stop.click(cancel, None, None, queue=False, api_visibility="private")
        blocks.unload(leave)
    return blocks


def show(page: Page, visit: Visit) -> Iterator[list[Any]]:
    """Yield what the page shows of a visit, until its work ends."""
    job, is_first = visit.job, True
    while True:
        is_active = visit.job is job and job is not None and job.is_active
        bar = f"<progress value={job.share if job else 0}></progress>" if is_active else ""
        engine = (visit.job and visit.job.engine) or page.engine
        text = f"{bar}{html.escape(page.status(visit))}<br><small>{html.escape(engine)}</small>"
        if is_first or not is_active:
            before = visit.before and (visit.before, visit.before)
            shown = (visit.job and visit.job.shown) or before
            result = visit.job and visit.job.result
            yield [
                gr.update(value=shown, elem_classes=["alone"] if shown == before else []), text,
                gr.update(value=result, interactive=result is not None), gr.update(interactive=is_active),
            ]  # fmt: skip
        else:
            yield [gr.skip(), text, gr.skip(), gr.skip()]
        if not is_active:
            return
        is_first = False
        time.sleep(POLL_SECONDS)
