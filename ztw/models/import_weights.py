"""Download weights of other projects, check them, and load them into a backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from torch import Tensor

from ztw.download import download
from ztw.errors import ZtwError
from ztw.files import sha256 as digest
from ztw.models.backbone import Backbone
from ztw.models.foreign_files import read_foreign as read_foreign  # part of this module's interface
from ztw.progress import Note, Report

COUNTER = "num_batches_tracked"  # of BatchNorm, ignored: older files lack it, and inference does not need it
SHOWN = 3  # number of mismatches that an error shows


def fetch_weights(url: str, sha256: str, root: Path | str, report: Report = lambda text: None) -> Path:
    """Download a file of weights to `root`/weights, unless it exists, and check its SHA-256 (hexadecimal).

    Returns:
        The path of the file.

    Raises:
        ZtwError: if the download fails or the checksum differs.
    """
    # a URL may contain NUL, newlines, or a name that is too long for a file system
    name = re.sub(r"[^A-Za-z0-9._ -]", "_", Path(unquote(urlsplit(url).path)).name)[-100:] or "file"
    target = Path(root) / "weights" / f"{sha256[:12].lower()}-{name}"
    if not target.exists():
        report(f"downloading {url}")
        download(url, target, sha256, report)
    elif (found := digest(target)) != sha256.lower():
        raise ZtwError(
            f"{target}: altered or truncated (SHA-256 {found[:12]}..., expected {sha256[:12].lower()}...);"
            " delete it to download it again"
        )
    return target


# Prefixes that training frameworks give to the network's names, in the order of preference if several fit.
PREFERRED = ("", "model.", "net.", "network.", "module.", "backbone.", "encoder.")


@dataclass(frozen=True)
class Match:
    """Entries of a file and the corresponding entries of a backbone.

    Args:
        how: "by name" or "in order".
        prefix: prefix of the names in the file.
        pairs: (name in the file, name in the backbone), in the order of the file.
        replaced: entries of the backbone that are not loaded, because the number of classes differs.
    """

    how: str
    prefix: str
    pairs: list[tuple[str, str]]
    replaced: list[str]


def load_foreign(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    name: str,
    new_last_layer: bool = False,
    report: Report = lambda text: None,
) -> str:
    """Load every weight of a backbone from the state dict of another project.

    Entries are matched by name: the backbone's own names, or those of the torchvision model that it was cut from. If
    the names differ, entries are matched in order. Their shapes and the last parts of their names must then be equal.
    The names may have a common prefix, and entries without this prefix are ignored (e.g. Lightning's `model.*`).

    Args:
        backbone: receives the weights.
        state: from `ztw.models.foreign_files.read_foreign`.
        name: name of the file, for error messages.
        new_last_layer: whether the last layer keeps its initial weights if only the number of classes differs.
        report: receives a line about a new last layer, and about entries that are not used.

    Returns:
        "by name" or "in order".

    Raises:
        ZtwError: if the weights do not fit. The message shows the first mismatches, and the backbone is unchanged.
    """
    own, given = _weights(backbone.state_dict()), _weights(state)
    match = _match(own, given, backbone, name)
    if match.replaced:
        count = next(given[theirs].shape[0] for theirs, key in match.pairs if key in match.replaced)
        differs = f"{name}: its last layer has {count} classes, not {backbone.num_classes}"
        if not new_last_layer:
            raise ZtwError(f"{differs}; set backbone.epochs above 0 to train a new last layer")
        report(Note(f"{differs}; replaced by a new last layer ({', '.join(match.replaced)})"))
    if left_out := [key for key in given if not key.startswith(match.prefix)]:
        what = _shortened({"entries": left_out})
        report(Note(f"{name}: uses the weights under {match.prefix!r}; not used: {what}"))
    filled = {key: given[theirs] for theirs, key in match.pairs if key not in match.replaced}
    backbone.load_state_dict({**backbone.state_dict(), **filled})
    return match.how


def _match(own: Mapping[str, Tensor], given: Mapping[str, Tensor], backbone: Backbone, name: str) -> Match:
    """Match a file to a backbone; raise ZtwError if there is no match, or several of equal rank."""
    last = _last_layer(own, backbone.num_classes)
    for matched in (_by_name, _in_order):
        fits = [match for prefix in _prefixes(given) if (match := matched(own, given, prefix, last))]
        fits = [match for match in fits if not match.replaced] or fits
        if not fits:
            continue
        best = min(fits, key=lambda match: _rank(match.prefix))
        if len(fits) > 1 and best.prefix not in PREFERRED:
            raise ZtwError(
                f"{name}: fits {backbone.arch} under each of {', '.join(repr(match.prefix) for match in fits)};"
                " save the weights of only one of them"
            )
        return best
    raise ZtwError(
        f"{name}: does not fit {backbone.arch}, {len(given)} entries for {len(own)};"
        f" {_shortened(_problems(own, given))}"
    )


def _rank(prefix: str) -> int:
    return PREFERRED.index(prefix) if prefix in PREFERRED else len(PREFERRED)


def _prefixes(given: Mapping[str, Tensor]) -> list[str]:
    """Return the dotted prefixes of the names in a file, "" first."""
    found = {"": None}
    for key in given:
        parts = key.split(".")
        found |= {".".join(parts[:depth]) + ".": None for depth in range(1, min(4, len(parts)))}
    return list(found)


def _below(given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in given.items() if key.startswith(prefix)}


def _last_layer(own: Mapping[str, Tensor], num_classes: int) -> list[str]:
    keys = list(own)[-2:]
    layer = keys[-1].rpartition(".")[0]
    return [key for key in keys if key.rpartition(".")[0] == layer and own[key].shape[:1] == (num_classes,)]


def _by_name(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str, last: list[str]
) -> Match | None:
    inner = _below(given, prefix)
    for naming in _namings(own):
        if naming.keys() == inner.keys():
            pairs = [(theirs, naming[theirs]) for theirs in inner]
            return _fitting("by name", own, given, prefix, pairs, last)
    return None


def _in_order(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str, last: list[str]
) -> Match | None:
    inner = _below(given, prefix)
    if len(inner) != len(own) or any(_tail(a) != _tail(b) for a, b in zip(inner, own, strict=True)):
        return None
    return _fitting("in order", own, given, prefix, list(zip(inner, own, strict=True)), last)


def _fitting(
    how: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    prefix: str,
    pairs: list[tuple[str, str]],
    last: list[str],
) -> Match | None:
    """Return the match if shapes are equal, apart from the number of classes; else None."""
    pairs = [(prefix + theirs, key) for theirs, key in pairs]
    wrong = [(theirs, key) for theirs, key in pairs if given[theirs].shape != own[key].shape]
    if not wrong:
        return Match(how, prefix, pairs, [])
    counts = {given[theirs].shape[:1] for theirs, _ in wrong}
    inner = all(given[theirs].shape[1:] == own[key].shape[1:] for theirs, key in wrong)
    if {key for _, key in wrong} == set(last) and len(counts) == 1 and inner:
        return Match(how, prefix, pairs, last)
    return None


def _tail(key: str) -> str:
    return key.rpartition(".")[2]


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}


def _namings(own: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Return dicts from a file's names to the backbone's: equal names, and if unique, names without "stages.<i>."."""
    cut = {re.sub(r"^(stages\.\d+|classifier)\.", "", key): key for key in own}
    return [{key: key for key in own}, *([cut] if len(cut) == len(own) else [])]


def _problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the mismatches by name if most names agree under some prefix, else in order."""
    agreeing, ours, inner = max(
        ((len(naming.keys() & below.keys()), naming, below) for naming, below in _name_pairs(own, given)),
        key=lambda pair: pair[0],
    )
    if 2 * agreeing > len(own):
        return _mismatches_by_name(ours, inner, own)
    return _mismatches_in_order(own, given)


def _name_pairs(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, str], dict[str, Tensor]]]:
    for prefix in _prefixes(given):
        for naming in _namings(own):
            yield naming, _below(given, prefix)


def _mismatches_by_name(
    ours: Mapping[str, str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    shapes = [
        f"{theirs} {tuple(given[theirs].shape)} for {tuple(own[key].shape)}"
        for theirs, key in ours.items()
        if theirs in given and given[theirs].shape != own[key].shape
    ]
    missing = [theirs for theirs in ours if theirs not in given]
    return {"missing": missing, "surplus": [key for key in given if key not in ours], "shape": shapes}


def _mismatches_in_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the unequal entries; if there are none, the missing and surplus names at the end."""
    wrong = [
        f"entry {index}: {theirs} {tuple(given[theirs].shape)} for {key} {tuple(own[key].shape)}"
        for index, (theirs, key) in enumerate(zip(given, own, strict=False), start=1)
        if given[theirs].shape != own[key].shape or _tail(theirs) != _tail(key)
    ]
    return {"": wrong} if wrong else {"missing": list(own)[len(given) :], "surplus": list(given)[len(own) :]}


def _shortened(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{f'{len(cases)} {kind}: ' if kind else ''}{', '.join(cases[:SHOWN])}"
        f"{f' and {len(cases) - SHOWN} more' if len(cases) > SHOWN else ''}"
        for kind, cases in problems.items()
        if cases
    )
