"""Parts of a user's own: `register` puts one beside the built-in ones, in the same table."""

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
from ztw.exits.rules import RULES, ExitRule, ThresholdRule
from ztw.exits.threshold_base import ThresholdChoice
from ztw.exits.thresholds import THRESHOLDS
from ztw.models.architectures import BACKBONES
from ztw.models.heads import HEADS
from ztw.study.helpers import code_sha256, helpers

# kind -> the table its parts are in
TABLES: dict[str, MutableMapping[str, Any]] = {
    "rule": RULES,
    "ensemble": ENSEMBLES,
    "head": HEADS,
    "thresholds": THRESHOLDS,
    "backbone": BACKBONES,
    "dataset": DATASETS,
}
_BASES: dict[str, type] = {"rule": ExitRule, "ensemble": Ensemble, "thresholds": ThresholdChoice}
# What must, and what may be said of the other kinds
_FACTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "backbone": (("blocks",), ("smallest_image",)),
    "dataset": (
        ("num_classes", "size", "channels"),
        ("mean", "std", "flip", "crop_padding", "colour_jitter"),
    ),
}


def register(kind: str, name: str, part: Any = None, **facts: Any) -> Any:
    """Put a part of your own into its table; without `part`, a decorator of a class or a function. Returns the part.

    kind and part:
    rule        a class derived from ExitRule, mostly from ThresholdRule
    ensemble    a class derived from Ensemble
    head        a function (feature shape, num_classes, previous logits, side of the images, options) -> module, see
                `ztw.models.heads`
    thresholds  a class derived from ThresholdChoice that needs no arguments
    backbone    a function (name, num_classes, channels, size, options) -> Backbone; facts: blocks, how many stages it
                has, and smallest_image, the smallest side of its images in pixels (1)
    dataset     a function () -> {"train": (images uint8 (N, C, size, size), labels (N,)), "test": (...)}; facts:
                num_classes, size, channels, and, if you like, mean, std, flip, crop_padding, colour_jitter:
                `DatasetMetadata`

    Raises ZtwError for an unknown kind, a name that is taken or not of letters, digits, _ and -, and a part that lacks
    something. `ztw.testing` checks what it does.
    """
    if kind not in TABLES:
        raise unknown("kind of part", kind, TABLES)
    if part is None:
        return lambda part: register(kind, name, part, **facts)
    label = f"{kind} {name!r}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ZtwError(f"{label}: a name has letters, digits, _ and - only")
    _check_free(kind, name, part)
    _check_part(kind, label, part)
    known = _checked_facts(kind, label, facts)
    if (kind, name) in PARTS:
        PARTS.pop((kind, name)).remove()
    remove = _put(kind, name, part, known)
    PARTS[kind, name] = Part(part, known, remove)
    return part


def _check_free(kind: str, name: str, part: Any) -> None:
    """A notebook's cell may be run again; anything else has a name of its own."""
    before = PARTS.get((kind, name))
    if before is None and (name in TABLES[kind] or name.startswith(TORCHVISION_PREFIX)):
        raise ZtwError(f"{kind} {name!r}: is the name of a built-in one; choose another")
    if before is not None and _home(before.what) != _home(part):
        where = before.plugin or _home(before.what)[0]
        raise ZtwError(f"{kind} {name!r}: is registered already, by {where}; choose another name")


def _home(part: Any) -> tuple[str, str]:
    part = part if hasattr(part, "__qualname__") else type(part)
    return part.__module__, part.__qualname__


def _check_part(kind: str, label: str, part: Any) -> None:
    """Whether it is of the sort its kind has to be, and lacks nothing."""
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
        raise ZtwError(f"{label}: {part.__name__} lacks top, the best score there is")


def _checked_facts(kind: str, label: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    needed, allowed = _FACTS.get(kind, ((), ()))
    for fact in facts:
        if fact not in (*needed, *allowed):
            told = f"known: {', '.join((*needed, *allowed))}" if needed else "it takes none"
            raise ZtwError(f"{label}: unknown fact {fact!r}; {told}")
    for fact in needed:
        if fact not in facts:
            raise ZtwError(f"{label}: the fact {fact!r} is missing")
    for fact in ("blocks", "smallest_image", "num_classes", "size", "channels"):
        least = 2 if fact == "num_classes" else 1
        value = facts.get(fact, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ZtwError(f"{label}: {fact} {value!r}, must be a whole number >= {least}")
    return dict(facts)


def _put(kind: str, name: str, part: Any, facts: dict[str, Any]) -> Callable[[], None]:
    """Enter a part; returns what takes it out again."""
    if kind == "rule":
        facts["threshold"] = issubclass(part, ThresholdRule)
    elif kind == "backbone":
        facts.setdefault("smallest_image", 1)
    elif kind == "thresholds":
        part = part()
    elif kind == "dataset":
        read = part
        DECODERS[name] = lambda name, facts, root, report: decode_own(read, name, facts)
        # decoded images are kept under this digest: other code, other images
        part = DatasetMetadata(**{"mean": None, "std": None, **facts, "digest": _code(name, read)})
    TABLES[kind][name] = part
    return partial(_take_out, kind, name)


def _take_out(kind: str, name: str) -> None:
    del TABLES[kind][name]
    if kind == "dataset":
        del DECODERS[name]


def _code(name: str, read: Any) -> str:
    """SHA-256 of the file a function is in, with what it imports of the user's own."""
    function = inspect.unwrap(read)
    try:
        path = Path(str(inspect.getsourcefile(function))).absolute()
        return code_sha256(path, helpers(path, function.__module__ or ""))
    except (TypeError, OSError) as error:
        raise ZtwError(
            f"dataset {name!r}: must be a function in a file: when that changes, its images are decoded again"
        ) from error
