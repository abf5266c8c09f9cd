"""Weights from elsewhere: downloaded and checked, read without running code, matched to a backbone strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor

from ztw.download import download
from ztw.errors import ZtwError
from ztw.files import sha256 as digest
from ztw.models.backbone import Backbone
from ztw.progress import Report
from ztw.tensors import read_tensors

NESTS = ("state_dict", "model", "net")  # keys under which training scripts put the weights
PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it, and nothing is computed from it
SHOWN = 3  # mismatches an error shows


def fetch_weights(url: str, sha256: str, root: Path | str, report: Report = lambda text: None) -> Path:
    """Download a file of weights to `root`/weights unless it is there; its SHA-256 is checked either way.

    url: http, https, ftp or file; sha256: in hexadecimal; report: gets a line now and then.
    Raises ZtwError when it cannot be had or is another file.
    """
    name = Path(unquote(urlsplit(url).path)).name or "file"
    target = Path(root) / "weights" / f"{sha256[:12].lower()}-{name}"
    if not target.exists():
        report(f"downloading {url}")
        download(url, target, sha256, report)
    elif (found := digest(target)) != sha256.lower():
        raise ZtwError(
            f"{target}: altered or truncated (SHA-256 {found[:12]}..., expected {sha256[:12].lower()}...);"
            " delete it to fetch it again"
        )
    return target


def read_foreign(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file, in their order; runs no code of the file.

    Unwraps what training scripts wrap around them: {"state_dict": ...}, names that begin with "module.".
    Raises ZtwError when the file is neither, or holds no weights.
    """
    content: Any = read_tensors(path, "is it the right file?") if _is_safetensors(path) else _read_torch(path)
    while nest := next((key for key in NESTS if isinstance(_get(content, key), Mapping)), None):
        content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise ZtwError(f"{path}: holds a {type(content).__name__}, not weights by name (a state dict)")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ZtwError(f"{path}: {key!r} is a {type(value).__name__}; expected weights by name alone")
    state: dict[str, Tensor] = dict(content)
    while prefix := next(
        (prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None
    ):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _is_safetensors(path: Path | str) -> bool:
    """By content (8 bytes of length, then JSON), because a download's name may lack the suffix."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as error:
        raise ZtwError(f"{path}: cannot be read ({error.strerror})") from error


def _read_torch(path: Path | str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fails on a broken file in any way there is
        raise ZtwError(
            f"{path}: neither a safetensors file nor a torch file of tensors alone;"
            " a pickled model must be saved again as its state_dict()"
        ) from error


def load_foreign(backbone: Backbone, state: Mapping[str, Tensor], name: str) -> str:
    """Fill every weight of a backbone from somebody else's state dict; returns "by name" or "in order".

    state: as `read_foreign` gives it; name: of its file, for errors. By name means the backbone's own
    names, or those of the torchvision model it was cut from. Otherwise entries must correspond one to one
    in the order of definition, each with the same shape and the same last part of its name.
    Raises ZtwError that shows the first mismatches; the backbone is then left as it was.
    """
    own, given = _weights(backbone.state_dict()), _weights(state)
    ours = max(_namings(own), key=lambda naming: len(naming.keys() & given.keys()))
    agreeing = len(ours.keys() & given.keys())
    by_name = ours.keys() == given.keys()
    pairs = [(theirs, ours[theirs] if by_name else key) for theirs, key in zip(given, own, strict=False)]
    wrong = [
        f"entry {index}: {theirs} {tuple(given[theirs].shape)} for {key} {tuple(own[key].shape)}"
        for index, (theirs, key) in enumerate(pairs, start=1)
        if given[theirs].shape != own[key].shape or theirs.split(".")[-1] != key.split(".")[-1]
    ]
    if wrong or len(given) != len(own):
        problems = _by_name(ours, given, own) if 2 * agreeing > len(own) else _in_order(wrong, given, own)
        raise ZtwError(
            f"{name}: does not fit {backbone.arch}, {len(given)} entries for {len(own)}; {_shortened(problems)}"
        )
    backbone.load_state_dict({**backbone.state_dict(), **{key: given[theirs] for theirs, key in pairs}})
    return "by name" if by_name else "in order"


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}


def _namings(own: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Name in a file -> name in the backbone: the same, and without the stages where that is unambiguous."""
    cut = {re.sub(r"^(stages\.\d+|classifier)\.", "", key): key for key in own}
    return [{key: key for key in own}, *([cut] if len(cut) == len(own) else [])]


def _by_name(
    ours: Mapping[str, str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """What keeps a file from fitting whose names are mostly the expected ones."""
    shapes = [
        f"{theirs} {tuple(given[theirs].shape)} for {tuple(own[key].shape)}"
        for theirs, key in ours.items()
        if theirs in given and given[theirs].shape != own[key].shape
    ]
    missing = [theirs for theirs in ours if theirs not in given]
    return {"missing": missing, "surplus": [key for key in given if key not in ours], "shape": shapes}


def _in_order(
    wrong: list[str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """What keeps a file from fitting whose names say nothing: a difference in length may explain the rest."""
    return {"": wrong} if wrong else {"missing": list(own)[len(given) :], "surplus": list(given)[len(own) :]}


def _shortened(problems: Mapping[str, list[str]]) -> str:
    """Each kind of problem with its count and its first few cases."""
    return "; ".join(
        f"{f'{len(cases)} {kind}: ' if kind else ''}{', '.join(cases[:SHOWN])}"
        f"{f' and {len(cases) - SHOWN} more' if len(cases) > SHOWN else ''}"
        for kind, cases in problems.items()
        if cases
    )
