"""Show example images that leave first, in the middle and last, with their labels and predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ztw.exits.rule_base import ExitRule
from ztw.exits.sweep import simulate_exits
from ztw.reporting.style import new_panels

EXAMPLES = 9  # images of a group
LARGEST = 96  # side of a thumbnail in pixels
PNG_UP_TO = 32  # larger thumbnails are JPEG
RIGHT, WRONG = "#00795a", "#b3261e"
LETTERS = 14  # of a name under an image of the figure


def make_gallery(
    logits: Tensor,
    labels: Tensor,
    rule: ExitRule,
    images_at: Callable[[Tensor], Tensor],
    class_names: Sequence[str],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return random images of the samples that leave first, in the middle and last, as values for JSON.

    Args:
        logits: (K, N, C) of single exits or an ensemble, on the test split.
        labels: int64 (N,).
        images_at: returns the images uint8 (B, channels, H, W) of samples int64 (B,).
        about: what the result holds besides: dataset, arch, seed, method, budget.
    """
    exit_index, source = simulate_exits(logits, rule)
    predicted = logits[source, torch.arange(len(labels))].argmax(-1)
    generator = torch.Generator().manual_seed(0)
    groups = []
    for name, exits in _parts(len(logits)):
        inside = torch.isin(exit_index, torch.tensor(exits)).nonzero().flatten()
        if not len(inside):
            continue
        right = float((predicted == labels)[inside].double().mean())
        chosen = inside[torch.randperm(len(inside), generator=generator)[:EXAMPLES]]
        samples = [
            {
                "label": class_names[int(labels[sample])],
                "predicted": class_names[int(predicted[sample])],
                "image": _data_uri(image),
            }
            for sample, image in zip(chosen, images_at(chosen), strict=True)
        ]
        title = f"{_share(len(inside), len(labels))} leave {name}; {100 * right:.0f} % of them are classified correctly"
        groups.append({"title": title, "samples": samples})
    return {**about, "groups": groups}


def _parts(exits: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the exits of each group: the first exit, the middle third, the last exit."""
    yield "at the first exit", [0]
    middle = [exit for exit in range(1, exits - 1) if exits <= 3 * (exit + 0.5) <= 2 * exits]
    if middle:
        where = f"exit {middle[0] + 1}" if len(middle) == 1 else f"exits {middle[0] + 1} to {middle[-1] + 1}"
        yield f"in the middle, at {where}", middle
    if exits > 1:
        yield f"last, at exit {exits}", [exits - 1]


def _share(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 1 else f"{share:.1f} %"


def _data_uri(pixels: Tensor) -> str:
    """Return an image uint8 (channels, H, W) as a data URI, at most LARGEST pixels wide."""
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image.thumbnail((LARGEST, LARGEST))
    kind = "PNG" if max(image.size) <= PNG_UP_TO else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_gallery(gallery: Mapping[str, Any]) -> Figure:
    """Draw the groups of a gallery as rows of images, with the predicted class under each image."""
    groups = gallery["groups"]
    figure, panels = new_panels(EXAMPLES, 0.95 * EXAMPLES, 1.5 * len(groups), rows=len(groups))
    for row, group in enumerate(groups):
        own = panels[row * EXAMPLES : (row + 1) * EXAMPLES]
        for axes, sample in zip(own, group["samples"], strict=False):
            _draw_sample(axes, sample)
        for axes in own[len(group["samples"]) :]:
            axes.set_axis_off()
        own[0].set_title(group["title"], loc="left", fontsize=10)
    figure.subplots_adjust(hspace=0.55, wspace=0.08)
    return figure


def _draw_sample(axes: plt.Axes, sample: Mapping[str, str]) -> None:
    right = sample["label"] == sample["predicted"]
    picture = Image.open(io.BytesIO(base64.b64decode(sample["image"].partition(",")[2])))
    axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255, aspect="equal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(
            visible=True, color=RIGHT if right else WRONG, linewidth=2.5, linestyle="-" if right else "--"
        )
    name, true = (_short(sample[key]) for key in ("predicted", "label"))
    axes.set_xlabel(name if right else f"{name},\nis {true}", fontsize=7, color=RIGHT if right else WRONG)


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
