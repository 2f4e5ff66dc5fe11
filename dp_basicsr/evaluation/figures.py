"""Write figures in the format that the name of the file asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_basicsr.errors import UserError
from dp_basicsr.utils.atomic_io import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_format(path: Path) -> str:
    """Return matplotlib's name of the format of ``path``, PNG without an ending; an unknown one is a UserError."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = path.suffix.lower().removeprefix(".") or "png"
    if suffix not in known:
        raise UserError(f"{path}: expected a name that ends with .{', .'.join(sorted(known))}; got {path.suffix}")
    return suffix


def save_figure(figure: Figure, path: Path, **settings: Any) -> None:
    """Write a figure that appears at ``path`` only when it is complete; ``settings`` are matplotlib's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # By name, because the temporary file ends with something else.
            figure.savefig(temporary, format=picture_format(path), **settings)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
