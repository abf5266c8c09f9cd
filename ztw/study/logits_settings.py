"""The keys of `logits`: cells that come from files of logits instead of trainings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from ztw.study.layout import Cell
from ztw.study.section import Name, Section, key


class LogitsSet(Section):
    """Exits of one network, whose logits are in files."""

    path: str = key(
        "File of logits, one per cell: `.safetensors`, `.npz` or `.parquet`. `{dataset}`, `{arch}` and `{seed}` stand"
        " for the cell's names. Relative to the folder that the study is run in."
    )
    training: Literal["separate", "layer_wise", "joint"] = key(
        "How the exits were trained: `separate` = on a frozen backbone, so that the last exit's accuracy is the"
        " backbone's; `layer_wise` or `joint` = together with it."
    )
    connection: Literal["independent", "cascade", "cascade_detached", "boosted"] = key(
        'What an exit sees of the previous one; see section "Connections". It decides the panel in figures.',
        "independent",
    )

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone was trained with the exits."""
        return self.training != "separate"

    def file(self, cell: Cell) -> Path:
        """Return the path of a cell's file."""
        path = self.path
        for name, value in asdict(cell).items():
            path = path.replace(f"{{{name}}}", str(value))
        return Path(path).expanduser()


class LogitsSettings(Section):
    """Section `logits`."""

    sets: dict[Name, LogitsSet] = key("Name -> `path` and `training`. Methods name these sets.", min_length=1)
    times: bool = key(
        "`true`: the first seed's files have measured times of the exits, for `tables/latency.csv`.", False
    )
