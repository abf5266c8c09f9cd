"""Classify images with early exits, as lines of a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ztw.cli.images import Reader, image_files
from ztw.cli.networks import network_and_rule
from ztw.data.folders import nfc
from ztw.data.images import shown
from ztw.device import pick_device
from ztw.errors import ZtwError
from ztw.evaluation.exit_times import SAMPLES, leaving_at
from ztw.evaluation.turn_times import Call, round_times
from ztw.exits.rules import ExitRule
from ztw.models.costs import fixed_exit_macs, macs
from ztw.models.network import EarlyExitNetwork

TURNS = 10  # of the measurement of times; the fastest counts, because other processes may slow the machine
HEADER = ("image", "class", "exit", "MACs saved", "time saved")


def lines(
    images: Path,
    folder: Path,
    rule: str | None,
    budget: str | None,
    batch_size: int,
    device: str,
    crop: bool,
) -> Iterator[str]:
    """Yield the header, a row per image and the summary; see the command's help for the arguments.

    Raises:
        ZtwError: for a network or images that cannot be used.
    """
    network, chosen = network_and_rule(folder, rule, budget)
    network, reader, paths = (
        network.to(pick_device(device)),
        Reader.of(network, folder, crop),
        image_files(images),
    )
    batches = reader.batches(paths, batch_size)
    first = next(batches, None)
    if first is None:
        raise ZtwError(f"{shown(images)}: no image can be read")
    names = network.class_names or tuple(map(str, range(network.backbone.num_classes)))
    saved = _saved_macs(network, chosen), _saved_time(network, chosen, first[1][:SAMPLES])
    titles = [_below(path, images) for path in paths]
    widths = (max(map(_width, (*titles, HEADER[0]))), max(map(_width, (*names, HEADER[1]))), 6, 10, 10)
    yield _row(HEADER, widths)
    exits, right = [], []
    for path, label, exit in _classified(network, chosen, chain([first], batches)):
        exits.append(exit)
        right.append(names[label] == nfc(path.parent.name))
        where, shares = f"{exit + 1}/{network.exits}", [_percent(share[exit]) for share in saved]
        yield _row((_below(path, images), names[label], where, *shares), widths)
    labelled = all(nfc(path.parent.name) in names for path in paths)
    yield ""
    yield _summary(torch.tensor(exits), *saved, right if labelled else [])


def _classified(
    network: EarlyExitNetwork, rule: ExitRule, batches: Iterable[tuple[list[Path], Tensor]]
) -> Iterator[tuple[Path, int, int]]:
    """Yield the path, the class and the exit (from 0) of each image."""
    for paths, images in batches:
        result = network.infer(images.to(_device(network)), rule)
        yield from zip(paths, result.logits.argmax(-1).tolist(), result.exit_index.tolist(), strict=True)


def _device(network: EarlyExitNetwork) -> torch.device:
    return next(network.parameters()).device


def _saved_macs(network: EarlyExitNetwork, rule: ExitRule) -> Tensor:
    """Return the share of the backbone's MACs (K,) that a sample saves if it leaves at each exit."""
    cost = fixed_exit_macs(network) if rule.single else macs(network)
    return 1 - cost / macs(network.backbone)


def _saved_time(network: EarlyExitNetwork, rule: ExitRule, batch: Tensor) -> Tensor:
    """Measure the share of the backbone's time (K,) that a sample saves if it leaves at each exit."""
    leaving = [leaving_at(exit, network.exits, type(rule)) for exit in range(network.exits)]
    batch = batch.to(_device(network))
    calls: list[Call] = [partial(_infer_at, network, leaves) for leaves in leaving]
    calls.append(lambda one: network.backbone(one).cpu())  # waits for a GPU
    with torch.inference_mode():
        times = round_times(calls, batch.split(1), rounds=1, turns=TURNS)[:, 0]
    return 1 - times[:-1] / times[-1]


def _infer_at(network: EarlyExitNetwork, rule: ExitRule, batch: Tensor) -> Tensor:
    return network.infer(batch, rule).logits.cpu()


def _summary(exits: Tensor, saved_macs: Tensor, saved_time: Tensor, right: Sequence[bool]) -> str:
    count = len(exits)
    shares = torch.bincount(exits, minlength=len(saved_macs)).double() / count
    where = ", ".join(f"{exit}: {_percent(share)}" for exit, share in enumerate(shares.tolist(), 1) if share)
    text = (
        f"{count} image{'s' if count > 1 else ''}: {_percent(shares @ saved_macs)} of the MACs and"
        f" {_percent(shares @ saved_time)} of the time saved. Share that leaves at exit {where}."
    )
    if right:
        text += f" Accuracy {100 * sum(right) / count:.1f} %, with the folders' names as classes."
    return text


def _below(path: Path, images: Path) -> str:
    return shown(path.relative_to(images) if images.is_dir() else path)


def _percent(share: Tensor | float) -> str:
    return f"{round(100 * float(share))} %"  # never -0


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell + " " * (width - _width(cell)) for cell, width in zip(cells[:2], widths, strict=False)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right])


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
