"""Write names beside lines and marks, where they cover nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

# Directions from a point to its name: right and up, each -1, 0 or 1
ROUND_A_MARK = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
BESIDE_A_LINE = ((-1, 1), (1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1))
STEP = 3.0  # pixels between the points of a line that a name must not cover
MARK = 5.0  # half the width of a mark, in pixels
GAP = 5.0  # pixels between a point and its name
PLACES = 24  # places along a line where its name is tried
CORNERS = ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
ENOUGH = 3.0  # a name is clear if the next other line is this many times as far away as its own


class Names:
    """The names in one panel. Each takes the first place where it covers no line, mark or other name.

    Draw everything, and set the limits and the size of the panel, before the first name.
    """

    def __init__(self, axes: Axes) -> None:
        axes.figure.draw_without_rendering()  # type: ignore[union-attr]
        self.axes, self.taken = axes, list[Bbox]()
        self.paths = {line: _path(line) for line in axes.lines}
        self.covered = np.concatenate([*self.paths.values(), *map(_marks, axes.lines), np.empty((0, 2))])

    def beside_line(self, line: Line2D, name: str, **look: Any) -> None:
        """Write a name beside a line, where other lines are far from it."""
        inside = self.paths[line][_inside(self.paths[line], self.axes.bbox)]
        if not len(inside):
            return
        others = [points for other, points in self.paths.items() if other is not line]
        places = inside[np.linspace(0.08 * len(inside), len(inside) - 1, PLACES).astype(int)]
        self._write(name, places, BESIDE_A_LINE, (inside, np.concatenate([*others, np.empty((0, 2))])), look)

    def at_marks(self, marks: Mapping[str, tuple[float, float]], **look: Any) -> None:
        """Write a name at each mark; marks: name -> x and y of the mark's data."""
        points = self.axes.transData.transform(np.array(list(marks.values())).reshape(-1, 2))
        for number, name in enumerate(marks):
            own, others = points[number : number + 1], np.delete(points, number, axis=0)
            self._write(name, own, ROUND_A_MARK, (own, others), look, marks=True)

    def _write(
        self,
        name: str,
        places: np.ndarray,
        directions: Sequence[tuple[int, int]],
        points: tuple[np.ndarray, np.ndarray],
        look: dict[str, Any],
        marks: bool = False,
    ) -> None:
        """Write a name at the best of the places (P, 2).

        Args:
            points: of what has the name, and of all others.
            marks: whether the points are marks: a name then takes the first place where its own mark is the nearest.
        """
        how: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 6, "annotation_clip": False}
        text = self.axes.annotate(name, (0, 0), **how, **look)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # readable on a band
        size = np.array(text.get_window_extent().size)
        found = [(place, np.array(way) * (size / 2 + GAP)) for place in places for way in directions]
        ranks = [self._rank(place + shift, size, points, marks) for place, shift in found]
        place, shift = found[min(range(len(found)), key=ranks.__getitem__)]
        text.xy = tuple(self.axes.transData.inverted().transform(place))
        text.set_position(tuple(shift * 72 / self.axes.figure.dpi))
        text.anncoords = "offset points"
        self.taken.append(_box(place + shift, size))

    def _rank(
        self, centre: np.ndarray, size: np.ndarray, points: tuple[np.ndarray, np.ndarray], marks: bool
    ) -> tuple[float, float]:
        """Return how bad a place is: what the name would cover there, and how near others are."""
        box = _box(centre, size)
        covered = float(_inside(self.covered, box).sum())
        covered += 1000 * sum(box.overlaps(taken) for taken in self.taken)
        covered += 1000 * (not _inside(np.array([box.min, box.max]), self.axes.bbox).all())
        own, other = (_distance(centre, 0 * size if marks else size, of) for of in points)
        return (covered + 100 * (other < own), 0.0) if marks else (covered, -min(other / own, ENOUGH))


def _distance(centre: np.ndarray, size: np.ndarray, points: np.ndarray) -> float:
    """Return the distance of a box from the nearest of points (P, 2), at least one pixel."""
    outside = np.maximum(abs(points - centre) - size / 2, 0)
    return max(1.0, float(np.hypot(*outside.T).min())) if len(points) else np.inf


def _box(centre: np.ndarray, size: np.ndarray) -> Bbox:
    return Bbox([centre - size / 2 - 1, centre + size / 2 + 1])


def _inside(points: np.ndarray, box: Bbox) -> np.ndarray:
    """Return whether each point (P, 2) lies in a box: bool (P,)."""
    return np.asarray(((points >= box.min) & (points <= box.max)).all(axis=1))


def _pixels(line: Line2D) -> np.ndarray:
    """Return a line's vertices (V, 2) in pixels."""
    return np.asarray(line.get_transform().transform(line.get_xydata()), dtype=float).reshape(-1, 2)


def _path(line: Line2D) -> np.ndarray:
    """Return points (P, 2) along a line, at most STEP pixels apart; the marks of a line that is not drawn."""
    vertices = _pixels(line)
    vertices = vertices[np.isfinite(vertices).all(axis=1)]
    if line.get_linestyle() == "None" or len(vertices) < 2:
        return vertices
    lengths = np.hypot(*np.diff(vertices, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0.0, along[-1], max(2, int(along[-1] / STEP)))
    return np.column_stack([np.interp(at, along, vertices[:, axis]) for axis in (0, 1)])


def _marks(line: Line2D) -> np.ndarray:
    """Return the corners and centres (P, 2) of a line's marks."""
    if line.get_marker() in ("", "None", None):
        return np.empty((0, 2))
    vertices, every = _pixels(line), line.get_markevery()
    vertices = vertices[every[0] :: every[1]] if isinstance(every, tuple) else vertices
    return np.concatenate([vertices + MARK * np.array(corner) for corner in CORNERS])
