"""Names of timm's models. Imports neither timm nor torch, because timm takes seconds to import."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ztw.errors import ZtwError

TIMM_PREFIX = "timm/"  # as in "timm/resnet50"
# timm registers a model by this decorator on the function that builds it
REGISTERED = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def check_timm_name(arch: str, label: str = "architecture") -> None:
    """Raise ZtwError if timm is not installed, or has no model of this name.

    Args:
        arch: "timm/<name>".
        label: key of the study, for the message.
    """
    name, known = arch.removeprefix(TIMM_PREFIX), timm_names()
    if known is None:
        raise ZtwError(f'{label}: {arch!r} needs the package timm: pip install "ztw[timm]"')
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        similar = (
            f"similar: {', '.join(TIMM_PREFIX + other for other in near)}" if near else "no similar name"
        )
        raise ZtwError(f"{label}: {arch!r} is unknown to timm; {similar}; timm.list_models() lists all names")


@cache
def timm_names() -> tuple[str, ...] | None:
    """Return the sorted names of `timm.list_models()`, read from timm's source; None if timm is not installed."""
    found = find_spec("timm")
    if found is None or not found.origin:
        return None
    files = Path(found.origin).parent.glob("models/*.py")
    names = {name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))}
    return tuple(sorted(names))
