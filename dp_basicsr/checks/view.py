"""Options as the rules see them: as written, with defaults, without wrong values."""

from __future__ import annotations

from typing import Any

from dp_basicsr.checks.problems import Path
from dp_basicsr.checks.signatures import members_of
from dp_basicsr.options.reading import Options
from dp_basicsr.options.schema import OptionFile, dataset_model, section_in
from dp_basicsr.options.section import Section, whole

from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import MODEL_REGISTRY


class View:
    """View of options as they are written, with their defaults, that hides wrong values from the rules."""

    def __init__(self, opt: Options) -> None:
        self.opt = opt
        self.wrong: set[Path] = set()  # paths of the values known to be wrong
        self.signatures: dict[Path, type[Section]] = {}  # models of the mappings with a ``type``
        name = opt.get("model_type")
        model = members_of(MODEL_REGISTRY).get(name) if isinstance(name, str) else None
        self.model: type | None = model if isinstance(model, type) else None
        # Models of other packages may read any key and have any loss.
        self.is_known_model = bool(model and model.__module__.startswith(("basicsr.", "dp_basicsr.")))
        self.is_gan = self.model is not None and issubclass(self.model, SRGANModel)

    def raw(self, *path: Any) -> Any:
        """Return the value at a path, right or wrong; None if there is none."""
        value: Any = self.opt
        for key in path:
            if isinstance(value, list) and isinstance(key, int):
                value = value[key] if key < len(value) else None
            else:
                value = value.get(key) if isinstance(value, dict) else None
        return value

    def valid(self, *path: Any) -> Any:
        """Return the value at a path or its default; None if there is none, or if it or a section around is wrong."""
        if any(bad == path[: len(bad)] for bad in self.wrong):
            return None
        section, value = self.raw(*path[:-1]), self.raw(*path)
        # A list is right only as a whole: rules compare its values with each other.
        if isinstance(value, list) and any(path == bad[: len(path)] for bad in self.wrong):
            return None
        # Only a key that is left out has its default: ~ is a value of its own.
        if isinstance(section, dict) and path[-1] not in section:
            model = self._model_of(path[:-1])
            field = model.model_fields.get(path[-1]) if model else None
            value = None if field is None or field.is_required() else field.get_default(call_default_factory=True)
        return whole(value)

    def _model_of(self, path: Path) -> type[Section] | None:
        """Return the model of the section at a path, if it has one."""
        if path in self.signatures:
            return self.signatures[path]
        if len(path) == 2 and path[0] == "datasets":
            return dataset_model(self.raw(*path))
        model: type[Section] | None = OptionFile
        for key in path:
            field = model.model_fields.get(key) if model else None
            model = section_in(field.annotation) if field else None
        return model
