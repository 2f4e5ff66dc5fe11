"""The work of the web page for its visitors."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from dp_basicsr.checkpoint.opened_network import is_converted
from dp_basicsr.deploy.batch import describe_left_out, find_jobs
from dp_basicsr.deploy.choices import AlphaMode, EngineName
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.upscale_picture import resize, size_of_result, upscale_picture
from dp_basicsr.deploy.upscaler import SEAM_ADVICE, Upscaler
from dp_basicsr.errors import UserError, first_of, shorten
from dp_basicsr.images.files import FORMATS, QUALITY, BadImageError
from dp_basicsr.images.metadata import Metadata, Picture
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import encode_picture, refuse_unwritable, refuse_without_memory

CROP = 192  # pixels, side of the crop to try first
STRENGTH = 0.8  # share of the second model, ESRGAN's example
# Of what messages advise; the page has no choice of tiles.
LABELS = {
    "--ext": "Format", "--alpha": "Transparency", "--quality": "Quality", "--outscale": "Times as large",
    SEAM_ADVICE: "",
}  # fmt: skip
SHOWN = 2560  # pixels, longest side of a picture on the page: a phone's browser fails at some ten megapixels
# Seconds for which files are kept after the page was closed (it may be loaded anew), or after the connection was lost.
CLOSED, LOST = 60.0, 3600.0


class Cancelled(Exception):  # noqa: N818  (not an error: the visitor asked for it)
    """The visitor stopped the work."""


@dataclass(frozen=True)
class Task:
    """What to do with images."""

    model: str
    other: str | None = None  # a second model to blend with
    strength: float = STRENGTH  # share of the second model, 0 to 1
    alpha: AlphaMode = "model"  # how transparency is upscaled
    ext: str = "auto"  # format of the result; auto: the image's own
    quality: int = QUALITY  # of JPEG and WebP
    outscale: float | None = None  # size of the result over that of the input; None: the model's scale
    is_trial: bool = False  # only a crop from the middle


@dataclass(eq=False)
class Job:
    """A task that waits, runs or has ended."""

    task: Task
    folder: Path  # the visitor's
    count: int  # of images
    stop: threading.Event = field(default_factory=threading.Event)  # ends the work after the current tile
    started: float = 0  # when the first image was begun; 0 before
    share: float = 0  # how much is finished, 0 to 1
    engine: str = ""  # what runs the model
    shown: tuple[Path, Path] | None = None  # the first image before and after
    result: Path | None = None  # the file to download
    text: str = ""  # what the page says of the end; empty before

    @property
    def is_active(self) -> bool:
        """Whether somebody waits for it."""
        return not self.text and not self.stop.is_set()


@dataclass(eq=False)
class Visit:
    """What is kept of a visitor."""

    folder: Path  # `in` has the images, `out` the results
    session: str = ""  # Gradio's name of the page that shows the visit
    deadline: float | None = None  # when the files are deleted; None while the page is open
    count: int = 0  # of images
    before: Path | None = None  # the first image, as the page shows it
    text: str = ""  # what the page says of the images
    job: Job | None = None  # the last one
    taken: dict[Path, Path] = field(default_factory=dict)  # where Gradio put an upload -> where it is now


@dataclass(eq=False)
class Page:
    """The work of the page. It outlives the connection to a visitor, who finds the result again by a key."""

    models: dict[str, Path]  # name shown -> file
    folder: Path  # for uploads and results; nothing else is served
    max_pixels: int  # of an input
    device: str = "auto"  # see ``open_engine``
    tile: int | None = None  # see ``Upscaler``

    def __post_init__(self) -> None:
        self.engine = ""  # what runs the model that is loaded
        self._notes: list[str] = []  # what the visitor of the running job is told besides
        self._loaded: tuple[tuple[Path | float | None, ...], Upscaler] | None = None
        self._visits: dict[str, Visit] = {}  # by the key of the browser's tab, which outlives a page loaded anew
        self._queue: list[Job] = []  # the first one runs
        self._changed = threading.Condition()  # guards visits and queue
        self._disk = threading.Lock()  # what was deleted is not written again
        threading.Thread(target=self._work, daemon=True).start()

    def open(self, named: Collection[Path]) -> None:
        """Open every model; one that was not named but found in a folder is left out if it is none, others raise."""
        for name, path in list(self.models.items()):
            # In torch: a conversion is for the model that is used.
            try:
                open_engine([path], engine="auto" if is_converted(path) else "torch", device=self.device, warn=print)
            except UserError as error:
                if path in named or len(self.models) == 1:
                    raise
                print(f"left out: {error}")
                del self.models[name]
        # The first visitor need not wait for it.
        self.upscaler(Task(next(iter(self.models))))

    def visit(self, key: str, session: str = "") -> Visit:
        """Return the visit of a key, or a new one; with a session, that page shows it from now on."""
        with self._changed:
            if key not in self._visits:
                self._visits[key] = Visit(Path(tempfile.mkdtemp(dir=self.folder)))
            visit = self._visits[key]
            if session:
                visit.session, visit.deadline = session, None
            return visit

    def leave(self, name: str, seconds: float) -> None:
        """Keep the visit of a key or session for some time only, unless the visitor comes back."""
        end = time.monotonic() + seconds
        with self._changed:
            for key, visit in self._visits.items():
                if name in (key, visit.session):
                    visit.deadline = min(visit.deadline or end, end)

    def sweep(self) -> None:
        """Delete the files of visitors who have not come back, and uploads that were broken off."""
        now = time.monotonic()
        with self._changed:
            ended = [key for key, visit in self._visits.items() if visit.deadline is not None and visit.deadline < now]
            left = [self._visits.pop(key) for key in ended]
            folders = {visit.folder for visit in self._visits.values()}
        for visit in left:
            self.cancel(visit)
            self._delete(visit.folder)
        for path in set(self.folder.iterdir()) - folders:
            with contextlib.suppress(FileNotFoundError):
                # The upload may have been completed meanwhile, which moves it.
                if path.stat().st_mtime < time.time() - LOST:
                    self._delete(path)

    def close(self) -> None:
        """Stop all work, and write nothing any more."""
        for job in self._queue:
            job.stop.set()
        # An engine that still computes a tile at the interpreter's end would abort it.
        with self._changed:
            self._changed.wait_for(lambda: not self._queue, timeout=5)
        # Never released: whoever would still write waits until the process ends.
        self._disk.acquire()

    def choose(self, visit: Visit, files: Sequence[Path]) -> None:
        """Take images into a visit, in place of those before and of their result; a UserError if none can be used."""
        self.cancel(visit)
        visit.count, visit.before, visit.text, visit.job = 0, None, "", None
        visit.taken.clear()
        for old in visit.folder.iterdir():
            self._delete(old)
        source, stems = visit.folder / "in", set[str]()
        # Gradio gives equal files of one name the same place.
        for number, file in enumerate(dict.fromkeys(files)):
            # The same name may come from several folders, and a.gif and a.png would become one file.
            parent = source / str(number) if file.stem in stems else source
            stems.add(file.stem)
            parent.mkdir(parents=True, exist_ok=True)
            with self._changed:
                try:
                    file.replace(parent / file.name)
                except FileNotFoundError:
                    # Equal files of several visitors have one place, too, and another one was here first.
                    copies = [other.taken[file] for other in self._visits.values() if file in other.taken]
                    if not copies:
                        raise UserError(f"{file.name} was not received: choose it again") from None
                    shutil.copyfile(copies[0], parent / file.name)
                visit.taken[file] = parent / file.name
        try:
            images, left_out = find_jobs([str(source)], visit.folder / "out", recursive=True)
            # Which macOS puts into archives and folders: `._photo.jpg` is no image.
            left_out += [path for path in visit.taken.values() if path.name.startswith(".")]
        except UserError as error:
            raise UserError(str(error).replace(str(source), "what was chosen")) from error
        failed: list[str] = []
        for image in images:
            try:
                picture = self._read(image.source)
                break
            except UserError as error:
                failed.append(f"{image.source.name}: {error}")
        else:
            raise UserError(failed[0] if len(failed) == 1 else shorten(failed))
        visit.before = self._show(picture, visit.folder / "before")
        visit.count = len(images)
        height, width = picture.colour.shape[:2]
        first = f", the first of {len(images)} images" if len(images) > 1 else ""
        notes = [describe_left_out(left_out) if left_out else "", shorten(failed)]
        visit.text = "; ".join([f"{image.source.name}: {width} x {height} pixels{first}", *filter(None, notes)])

    def start(self, visit: Visit, task: Task) -> None:
        """Put the work on a visit's images at the end of the queue; no images, or no such model, is a UserError."""
        if not visit.count:
            raise UserError("choose an image first; those from before a restart of the server are gone")
        if unknown := {task.model, task.other or task.model} - set(self.models):
            raise UserError(f"unknown model {unknown.pop()!r}")
        self.cancel(visit)
        visit.job = Job(task, visit.folder, visit.count)
        self._delete(visit.folder / "out")
        with self._changed:
            self._queue.append(visit.job)
            self._changed.notify()

    def cancel(self, visit: Visit) -> None:
        """Stop the work of a visit; of a running image the current tile is completed unseen."""
        if visit.job:
            visit.job.stop.set()

    def status(self, visit: Visit) -> str:
        """Return what the page says: of the images, of the work, or of its end."""
        job = visit.job
        if job is None or job.text:
            return job.text if job else visit.text
        if job.stop.is_set():
            return "Cancelled."
        with self._changed:
            ahead = self._queue[: self._queue.index(job)] if job in self._queue else []
        images = sum(other.count - int(other.share * other.count) for other in ahead if other.is_active)
        if images:
            return f"waiting: {images} image{'s' if images > 1 else ''} before yours"
        if not job.started:
            return "Loading the model"
        text = f"Working: {job.share:.0%}"
        if job.count > 1:
            text += f", image {min(int(job.share * job.count) + 1, job.count)} of {job.count}"
        if job.share:
            left = (time.monotonic() - job.started) * (1 / job.share - 1)
            text += f", {timedelta(seconds=round(left))} left"
        return text

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                # It stays in the queue while it runs, so that the others see what is before them.
                job = self._queue[0]
            try:
                text = self._upscale(job)
            except Cancelled:
                text = "Cancelled."
            except BaseException as error:
                # This thread works for all visitors, and must survive what one image raises.
                text = explain(error)
                # Parts of results would keep a full disk full.
                job.shown = job.result = None
                self._delete(job.folder / "out")
            for option, label in LABELS.items():
                text = text.replace(option, label)
            with self._changed:
                job.text = text
                self._queue.remove(job)
                self._changed.notify_all()

    def _upscale(self, job: Job) -> str:
        """Upscale the images of a job, and return what to say; of several, those that fail are named."""
        if job.stop.is_set():
            raise Cancelled
        task, upscaler, out = job.task, self.upscaler(job.task), job.folder / "out"
        job.engine = self.engine
        scale = task.outscale or upscaler.scale
        suffix = f"{'_crop' if task.is_trial else ''}_x{scale:g}"
        images, _ = find_jobs([str(job.folder / "in")], out / "all", recursive=True, suffix=suffix, ext=task.ext)
        job.started = time.monotonic()
        written, failed, size = list[Path](), list[str](), ""
        notes, upscaler.warned = self._notes, set()
        notes.clear()

        def on_tile(done: int, total: int) -> None:
            job.share = (len(written) + len(failed) + done / total) / len(images)
            if job.stop.is_set():
                raise Cancelled

        for image in images:
            try:
                picture = self._read(image.source)
                picture = crop_middle(picture, CROP, upscaler.engine.network.size.step) if task.is_trial else picture
                height, width = size_of_result(picture, upscaler, scale)
                alpha = None if task.alpha == "drop" else picture.alpha
                refuse_unwritable(FORMATS[image.target.suffix.lower()], width, height, alpha)
                refuse_without_memory(width, height, picture.colour, alpha)
                upscaled = upscale_picture(picture, upscaler, outscale=scale, alpha_mode=task.alpha, on_tile=on_tile)
                words: list[str] = []
                data = encode_picture(upscaled, image.target.suffix, task.quality, words.append)
                notes += [f"{image.source.name}: {word}" if len(images) > 1 else word for word in words]
            except UserError as error:
                if len(images) == 1:
                    raise
                failed.append(f"{image.source.name}: {error}")
                continue
            self._write(data, image.target, job)
            if not written:
                job.shown = self._show(picture, out / "before", job), self._show(upscaled, out / "after", job)
                size = "{1} x {0} pixels".format(*upscaled.colour.shape)
            written.append(image.target)
        if not written:
            raise UserError(shorten(failed))
        result = written[0]
        with self._disk:
            # Whoever cancels may have started anew, which deletes what was written.
            if job.stop.is_set():
                raise Cancelled
            if len(images) > 1:
                size = f"{len(written)} of {len(images)} images"
                result = out / f"upscaled{suffix}.zip"
                with zipfile.ZipFile(result, "w") as archive:
                    for path in written:
                        archive.write(path, path.relative_to(out / "all"))
            size += f", {result.stat().st_size / 1e6:.1f} MB"
        job.result = result
        took = timedelta(seconds=round(time.monotonic() - job.started))
        return " ".join([f"Done in {took}: {size}.", "; ".join([*failed, *first_of(notes, 4)])]).rstrip()

    def upscaler(self, task: Task) -> Upscaler:
        """Return the network, which stays loaded until another one is asked for."""
        paths = [self.models[name] for name in (task.model, task.other) if name is not None]
        strength = None if task.other is None else task.strength
        # A training writes its networks anew.
        key = (*paths, strength, *(path.exists() and path.stat().st_mtime_ns for path in paths))
        if self._loaded is None or self._loaded[0] != key:
            # Not a conversion for each strength.
            kind: EngineName = "auto" if strength is None else "torch"
            engine = open_engine(paths, engine=kind, alpha_interp=strength, device=self.device, warn=print)
            self._loaded = key, Upscaler(engine, tile=self.tile, warn=self._notes.append)
        self.engine = self._loaded[1].engine.title.partition(" (converted")[0]
        return self._loaded[1]

    def _read(self, path: Path) -> Picture:
        try:
            return read_picture(path, self.max_pixels)
        except BadImageError as error:
            raise UserError(f"the image {error}") from error

    def _show(self, picture: Picture, path: Path, job: Job | None = None) -> Path:
        """Write a picture as the page shows it."""
        height, width = picture.colour.shape[:2]
        factor = min(SHOWN / max(height, width), 1)
        size = max(round(height * factor), 1), max(round(width * factor), 1)
        alpha = None if picture.alpha is None else resize(picture.alpha, *size)
        path = path.with_suffix(".jpg" if alpha is None and height * width > 1e6 else ".png")
        small = replace(picture, colour=resize(picture.colour, *size), alpha=alpha)
        return self._write(encode_picture(small, path.suffix, warn=lambda text: None), path, job)

    def _write(self, data: bytes, path: Path, job: Job | None) -> Path:
        """Write a file of a visitor who is still there and has not cancelled."""
        with self._disk:
            if job and job.stop.is_set():
                raise Cancelled
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path

    def _delete(self, path: Path) -> None:
        with self._disk:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def crop_middle(picture: Picture, side: int, step: int) -> Picture:
    """Return at most ``side`` x ``side`` pixels from the middle, which begin where a tile may: see ``InputSize``."""
    top, left = (max(length - side, 0) // 2 // step * step for length in picture.colour.shape[:2])
    rows, columns = slice(top, top + side), slice(left, left + side)
    alpha = None if picture.alpha is None else picture.alpha[rows, columns]
    # What else the file knows, such as places in the picture, does not hold for a part of it.
    metadata = Metadata(icc=picture.metadata.icc, chunks=picture.metadata.chunks)
    return replace(picture, colour=picture.colour[rows, columns], alpha=alpha, metadata=metadata)


def explain(error: BaseException) -> str:
    """Describe an error to a visitor, whatever it is; one that is not the visitor's is also printed."""
    if isinstance(error, UserError):
        return f"Not done: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Not done: the disk of the server's temporary files is full; TMPDIR=FOLDER at its start names another"
    traceback.print_exception(error)
    return f"Not done: {type(error).__name__}: {error}"
