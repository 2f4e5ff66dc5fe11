"""Write figures in the format that the name of the file asks for."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
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


def save_figure(figure: Figure, path: Path, *, dpi: float, **settings: Any) -> None:
    """Write a figure that appears at ``path`` only when it is complete; ``settings`` are matplotlib's."""
    from dp_basicsr.images.write import LONGEST_SIDE  # not for --help: it imports Pillow

    show_letters(figure)
    kind = picture_format(path)
    # Drawn smaller where the format ends; older matplotlib ends near JPEG's limit. A tight box may be an inch larger.
    limit = LONGEST_SIDE["WEBP" if kind == "webp" else "JPEG"] / (max(figure.get_size_inches()) + 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, warnings.catch_warnings():
            # Said once, above.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            # By name, because the temporary file ends with something else.
            figure.savefig(temporary, format=kind, dpi=min(dpi, limit), **settings)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def show_letters(figure: Figure) -> None:
    """Show a figure's texts in fonts of this machine that have their letters, and print which letters none has."""
    from matplotlib import font_manager, rcParams
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    for text in texts:
        # A file's name may have bytes that are no letters.
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())
    families = list(rcParams["font.family"])
    missing = {ord(letter) for text in texts for letter in text.get_text() if letter.isprintable()}
    missing -= FT2Font(font_manager.findfont(font_manager.FontProperties(family=families))).get_charmap().keys()
    if not missing:
        return
    fonts = list[FT2Font]()
    for path in sorted(font_manager.findSystemFonts()):
        with contextlib.suppress(RuntimeError, OSError):
            # Else it is damaged, or of a kind that matplotlib does not read.
            fonts.append(FT2Font(path))
    # That with the most of the letters first.
    for font in sorted(fonts, key=lambda font: -len(missing & font.get_charmap().keys())):
        if font.scalable and missing & font.get_charmap().keys():
            font_manager.fontManager.addfont(os.fsdecode(font.fname))
            families.append(font.family_name)
            missing -= font.get_charmap().keys()
    for text in texts:
        text.set_fontfamily(families)
    if missing:
        letters = "".join(map(chr, sorted(missing)))
        print(f"warning: no font here has {letters}: install one, such as Debian's fonts-noto-cjk", file=sys.stderr)
