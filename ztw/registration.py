"""Register a user's own exit rules, ensembles, heads, ways to choose thresholds, backbones and data sets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from ztw.catalogue.datasets import DATASETS, DatasetMetadata
from ztw.catalogue.parts import PARTS, Part
from ztw.catalogue.torchvision import TORCHVISION_PREFIX
from ztw.data.decode import DECODERS, decode_own
from ztw.errors import ZtwError, unknown
from ztw.exits.ensembles import ENSEMBLES, Ensemble
from ztw.exits.fitted_base import FittedRule
from ztw.exits.rules import RULES, ExitRule, ThresholdRule
from ztw.exits.threshold_base import ThresholdChoice
from ztw.exits.thresholds import THRESHOLDS
from ztw.models.architectures import BACKBONES
from ztw.models.heads import HEADS
from ztw.study.helpers import code_sha256, helpers

# kind -> table of its parts
TABLES: dict[str, MutableMapping[str, Any]] = {
    "rule": RULES,
    "ensemble": ENSEMBLES,
    "head": HEADS,
    "thresholds": THRESHOLDS,
    "backbone": BACKBONES,
    "dataset": DATASETS,
}
_BASES: dict[str, type] = {"rule": ExitRule, "ensemble": Ensemble, "thresholds": ThresholdChoice}
# kind -> required and optional metadata
_METADATA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "backbone": (("blocks",), ("smallest_image",)),
    "dataset": (
        ("num_classes", "size", "channels"),
        ("mean", "std", "flip", "crop_padding", "colour_jitter"),
    ),
}


def register(kind: str, name: str, part: Any = None, **metadata: Any) -> Any:
    """Register your own part, so that studies and functions accept its name like a built-in one.

    Call it with `part`, or use it as a decorator. `ztw.testing` has contract tests for registered parts.

    Args:
        kind: "rule", "ensemble", "head", "thresholds", "backbone" or "dataset".
        name: letters, digits, _ and -.
        part: depends on the kind.

            - rule: a subclass of ExitRule, usually of ThresholdRule, or of FittedRule if it is fitted.
            - ensemble: a subclass of Ensemble.
            - head: a function (feature_shape, num_classes, previous, image_size, options) -> module, with arguments
              as in `ztw.models.heads.conv_head`.
            - thresholds: a subclass of ThresholdChoice, constructed without arguments.
            - backbone: a function (name, num_classes, channels, size, options) -> Backbone.
            - dataset: a function () -> {"train": (images uint8 (N, C, size, size), labels (N,)), "test": (...)}.
        metadata: more arguments, for two kinds.

            - backbone: blocks = number of stages; optionally smallest_image = smallest image side in pixels.
            - dataset: num_classes, size, channels; optionally mean, std, flip, crop_padding, colour_jitter. See
              `ztw.catalogue.datasets.DatasetMetadata`.

    Returns:
        The part, or a decorator if `part` is not given.

    Raises:
        ZtwError: for an unknown kind, an invalid or existing name, an incomplete part, and unknown or missing metadata.

    Example:
        >>> import ztw
        >>> @ztw.register("ensemble", "last")
        ... class Last(ztw.Ensemble):
        ...     def combine(self, log_probs):
        ...         return log_probs[-1]
        >>> "last" in ztw.list_ensembles()
        True
    """
    if kind not in TABLES:
        raise unknown("kind of part", kind, TABLES)
    if part is None:
        return lambda part: register(kind, name, part, **metadata)
    label = f"{kind} {name!r}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ZtwError(f"{label}: a name has letters, digits, _ and - only")
    _check_free(kind, name, part)
    _check_part(kind, label, part)
    known = _checked_metadata(kind, label, metadata)
    if (kind, name) in PARTS:
        PARTS.pop((kind, name)).remove()
    remove = _put(kind, name, part, known)
    PARTS[kind, name] = Part(part, known, remove)
    return part


def _check_free(kind: str, name: str, part: Any) -> None:
    """Raise ZtwError if the name is taken by another part. A notebook may register a part again."""
    before = PARTS.get((kind, name))
    if before is None and (name in TABLES[kind] or name.startswith(TORCHVISION_PREFIX)):
        raise ZtwError(f"{kind} {name!r}: is the name of a built-in part; choose another name")
    if before is not None and _home(before.what) != _home(part):
        where = before.plugin or _home(before.what)[0]
        raise ZtwError(f"{kind} {name!r}: is registered already, by {where}; choose another name")


def _home(part: Any) -> tuple[str, str]:
    part = part if hasattr(part, "__qualname__") else type(part)
    return part.__module__, part.__qualname__


def _check_part(kind: str, label: str, part: Any) -> None:
    base = _BASES.get(kind)
    if base is None:
        if not callable(part):
            raise ZtwError(f"{label}: {part!r}, must be a function")
        return
    if not inspect.isclass(part) or not issubclass(part, base):
        raise ZtwError(f"{label}: {part!r}, must be a class derived from ztw.{base.__name__}")
    if missing := sorted(getattr(part, "__abstractmethods__", ())):
        raise ZtwError(f"{label}: {part.__name__} lacks {', '.join(missing)}")
    if issubclass(part, ThresholdRule) and not hasattr(part, "top"):
        raise ZtwError(f"{label}: {part.__name__} lacks top, the best possible score")


def _checked_metadata(kind: str, label: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    needed, optional = _METADATA.get(kind, ((), ()))
    for key in metadata:
        if key not in (*needed, *optional):
            known = f"known: {', '.join((*needed, *optional))}" if needed else f"a {kind} takes none"
            raise ZtwError(f"{label}: unknown argument {key!r}; {known}")
    for key in needed:
        if key not in metadata:
            raise ZtwError(f"{label}: the argument {key!r} is missing")
    for key in ("blocks", "smallest_image", "num_classes", "size", "channels"):
        least = 2 if key == "num_classes" else 1
        value = metadata.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ZtwError(f"{label}: {key} {value!r}, must be a whole number >= {least}")
    return dict(metadata)


def _put(kind: str, name: str, part: Any, metadata: dict[str, Any]) -> Callable[[], None]:
    """Add a part to its table; return the function that removes it."""
    if kind == "rule":
        metadata["threshold"], metadata["fitted"] = (
            issubclass(part, base) for base in (ThresholdRule, FittedRule)
        )
    elif kind == "backbone":
        metadata.setdefault("smallest_image", 1)
    elif kind == "thresholds":
        part = part()
    elif kind == "dataset":
        read = part
        DECODERS[name] = lambda name, facts, root, report: decode_own(read, name, facts)
        # in the name of the decoded files, so that changed code decodes the images again
        part = DatasetMetadata(**{"mean": None, "std": None, **metadata, "digest": _code(name, read)})
    TABLES[kind][name] = part
    return partial(_take_out, kind, name)


def _take_out(kind: str, name: str) -> None:
    del TABLES[kind][name]
    if kind == "dataset":
        del DECODERS[name]


def _code(name: str, read: Any) -> str:
    """Return one SHA-256 of a function's file and the user's modules that the file imports."""
    function = inspect.unwrap(read)
    try:
        path = Path(str(inspect.getsourcefile(function))).absolute()
        return code_sha256(helpers(path, function.__module__ or ""))
    except (TypeError, OSError) as error:
        raise ZtwError(
            f"dataset {name!r}: must be a function in a file; a change of the file decodes its images again"
        ) from error
