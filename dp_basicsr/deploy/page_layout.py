"""How the web page looks, with Gradio; ``page.css`` and ``page.js`` belong to it."""

from __future__ import annotations

import asyncio
import html
import json
import uuid
from pathlib import Path
from typing import Any, get_args

from dp_basicsr.deploy.choices import AlphaMode
from dp_basicsr.deploy.page import LOST, STRENGTH, Page, Task, Visit, explain
from dp_basicsr.errors import import_optional
from dp_basicsr.images.files import QUALITY, READ_SUFFIXES

# Here, because Gradio looks up the handlers' annotations among the module's names.
try:
    import gradio as gr
    from starlette.concurrency import run_in_threadpool
except Exception:  # a broken package raises anything
    gr = None  # type: ignore[assignment]

POLL_SECONDS = 0.2
ALONE = "(none)"
EXTENSIONS = ("auto", "png", "jpg", "webp", "tif")
# The key of a visit stays with the tab, also when Gradio loads the page anew after a lost connection.
KEY = "(_, ...values) => [sessionStorage.visit, ...values]"


class _Handlers:
    """What Gradio calls; nearly all answer with the values of ``build``'s ``outputs``."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def resume(self, key: str, request: gr.Request) -> list[Any]:
        return view(self.page, self.page.visit(key, str(request.session_hash)))

    def choose(self, key: str, files: list[str], request: gr.Request) -> list[Any]:
        visit = self.page.visit(key, str(request.session_hash))
        try:
            self.page.choose(visit, [Path(file) for file in files])
        except Exception as error:
            visit.text = explain(error)
        return view(self.page, visit)

    def start(
        self, key: str, is_trial: bool, model: str, other: str, strength: float, alpha: AlphaMode, ext: str,
        quality: float, outscale: float, request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        visit = self.page.visit(key, str(request.session_hash))
        blend = None if other == ALONE else other
        try:
            self.page.start(visit, Task(model, blend, strength, alpha, ext, int(quality), outscale or None, is_trial))
        except Exception as error:
            visit.text, visit.job = explain(error), None
        return view(self.page, visit)

    async def handle(
        self, image: str | None, model: str, other: str, strength: float, alpha: AlphaMode, ext: str, quality: float,
        outscale: float, request: gr.Request,
    ) -> tuple[str, Path | None]:  # fmt: skip
        """Upscale the image of a program, which has no tab: its call is a visit, which ends with the answer."""
        # Not by the program's session, of which several calls may run at once.
        key = uuid.uuid4().hex
        visit = self.page.visit(key)
        try:
            # Not by asyncio's threads: the server waits for them at its end, when they may wait for the disk for ever.
            if image:
                await run_in_threadpool(self.choose, key, [image], request)
            if visit.count or not image:
                settings = model, other, strength, alpha, ext, quality, outscale
                await run_in_threadpool(self.start, key, False, *settings, request)
            # It has a deadline once the program has gone.
            while visit.job and visit.job.is_active and visit.deadline is None:
                await asyncio.sleep(POLL_SECONDS)
        finally:
            # When a program cancels its call, Gradio ends a task, but not a thread.
            self.page.cancel(visit)
            self.page.leave(key, LOST)
        return self.page.status(visit), visit.job.result if visit.job else None

    def cancel(self, key: str) -> list[Any]:
        self.page.cancel(self.page.visit(key))
        return view(self.page, self.page.visit(key))

    def poll(self, key: str, seen: str) -> list[Any]:
        return view(self.page, self.page.visit(key), seen)

    def leave(self, request: gr.Request) -> None:
        self.page.leave(str(request.session_hash), LOST)


def build(page: Page) -> Any:
    """Build the Gradio page (``gradio.Blocks``) for ``page``; a UserError if Gradio is not installed, or broken."""
    import_optional("gradio")
    names, has_two, on = list(page.models), len(page.models) > 1, _Handlers(page)
    with gr.Blocks(title="Upscale images", analytics_enabled=False) as blocks:
        with gr.Column(elem_id="image"):
            slider = gr.ImageSlider(
                show_label=False, type="filepath", interactive=False, elem_id="slider", buttons=["fullscreen"]
            )
            status = gr.HTML(elem_id="status")
            with gr.Row(elem_id="buttons"):
                # What a phone gives is taken too, so that the page says what it is.
                kinds = [*READ_SUFFIXES, ".heic", ".heif"]
                files = gr.UploadButton("Choose images", file_count="multiple", file_types=kinds)
                upscale = gr.Button("Upscale", variant="primary", elem_id="start")
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
        key, seen = gr.Textbox(visible=False), gr.Textbox(visible=False)
        timer = gr.Timer(POLL_SECONDS, active=False)
        outputs = [status, slider, download, stop, timer, seen]
        settings: list[Any] = [model, other, strength, alpha, ext, quality, outscale]
        # Not queued: Gradio ends a page's stream of answers when none is awaited, and loses an answer that is asked for
        # before the browser has noticed. So each answer is that to a request, and a timer asks while work goes on.
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "js": KEY}
        for button in (upscale, trial):
            button.click(on.start, [key, gr.State(button is trial), *settings], outputs, **quiet)
        for upload in (files, folder):
            upload.upload(on.choose, [key, upload], outputs, **quiet)
        image, program = gr.File(visible=False), gr.Button(visible=False)
        # Queued, as an answer takes as long as the work; a page does not ask for it.
        program.click(on.handle, [image, *settings], [status, download], api_name="handle", concurrency_limit=None)
        stop.click(on.cancel, key, outputs, **quiet)
        timer.tick(on.poll, [key, seen], outputs, trigger_mode="once", **quiet)
        blocks.load(on.resume, key, outputs, **quiet)
        # The settings of these models stay with the tab, too.
        stored = f"sessionStorage[{json.dumps(f'settings of {names}')}]"
        gr.on([setting.change for setting in settings], None, settings, None,
              js=f"(...values) => {{ {stored} = JSON.stringify(values) }}")  # fmt: skip
        blocks.load(None, settings, settings, js=f"(...values) => JSON.parse({stored} ?? JSON.stringify(values))")
        blocks.unload(on.leave)
    return blocks


def view(page: Page, visit: Visit, seen: str = "") -> list[Any]:
    """Return the values of ``outputs``; only the text if the page has ``seen`` the rest."""
    job = visit.job
    is_active = job is not None and job.is_active
    bar = f"<progress value={job.share}></progress>" if job and is_active else ""
    engine = (job and job.engine) or page.engine
    text = f"{bar}{html.escape(page.status(visit))}<br><small>{html.escape(engine)}</small>"
    before = visit.before and (visit.before, visit.before)
    shown, result = (job and job.shown) or before, job and job.result
    state = f"{shown} {result} {is_active}"
    if state == seen:
        return [text, *[gr.skip()] * 5]
    return [
        text,
        gr.update(value=shown, elem_classes=["alone"] if shown == before else []),
        gr.update(value=result, interactive=result is not None),
        gr.update(interactive=is_active),
        gr.update(active=is_active),
        state,
    ]
