"""What a published study consists of: results of pairs of a cell and a method, of a run or published already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ztw.errors import ZtwError, reason
from ztw.reporting.devices import COLUMNS, device_rows, with_kinds
from ztw.reporting.readable import read_rows
from ztw.reporting.results import IDENTITY, Metrics, from_files, read_curves, read_metrics, write_metrics
from ztw.reporting.tables import write_csv
from ztw.study.layout import Cell
from ztw.study.settings import Study
from ztw.tensors import read_metadata, read_tensors, write_tensors

# of the curves: what a figure or another choice of thresholds needs
CURVE = ["dataset", "arch", "seed", "method", "split", "parameter", "accuracy", "relative_cost"]
Pair = tuple[Cell, str]


@dataclass(frozen=True)
class Contents:
    """All that tables and figures are made of, but measured times.

    devices: see `ztw.reporting.devices`; answers: (cell, method) -> "<protocol>@<budget>" -> uint8 (N,).
    """

    metrics: Metrics
    devices: list[dict[str, Any]]
    curves: pd.DataFrame
    answers: dict[Pair, dict[str, Tensor]]

    @property
    def pairs(self) -> set[Pair]:
        """Of which there are results."""
        return set(_pairs_of(self.metrics[IDENTITY].drop_duplicates()))


def pairs(study: Study) -> Iterator[Pair]:
    """Every cell with every method, in the order of the tables."""
    cells = [Cell(dataset, arch, seed) for dataset, arch in study.cells for seed in study.seeds]
    yield from product(cells, study.methods)


def of_run(study: Study, folder: Path) -> Contents:
    """What a run has finished, of hosts only how many there were; raises ZtwError when that is nothing."""
    done = [
        (cell, method)
        for cell, method in pairs(study)
        if all((folder / str(cell) / file).is_file() for file in _files(method))
    ]
    if not done:
        raise ZtwError(f"{folder}: nothing of the study is finished; run make reproduce first")
    metrics, curves, answers = zip(
        *([str(folder / str(cell) / file) for file in _files(method)] for cell, method in done), strict=True
    )
    devices = device_rows(metrics)
    hosts = {host: f"host {number}" for number, host in enumerate(dict.fromkeys(_hosts(devices)), 1)}
    return Contents(
        from_files(metrics),
        [{**row, "host": hosts[row["host"]]} for row in devices],
        _small(read_curves(curves)[CURVE].drop_duplicates()),
        {pair: read_tensors(file) for pair, file in zip(done, answers, strict=True)},
    )


def _files(method: str) -> tuple[str, str, str]:
    return f"metrics/{method}.json", f"curves/{method}.parquet", f"answers/{method}.safetensors"


def _hosts(devices: list[dict[str, Any]]) -> list[str]:
    return [row["host"] for row in devices]


def of_published(study: Study, folder: Path) -> Contents:
    """What stands in results/reference."""
    file = folder / "answers.safetensors"
    packed, samples = read_tensors(file), read_metadata(file)
    metrics = read_metrics(folder / "tables/metrics.csv")
    there = set(_pairs_of(metrics[IDENTITY].drop_duplicates()))
    answers: dict[Pair, dict[str, Tensor]] = {pair: {} for pair in pairs(study) if pair in there}
    for cell, method in answers:
        start = f"{cell}/{method}/"
        answers[cell, method] = {
            name.removeprefix(start): _unpacked(bits, int(samples[str(cell)]))
            for name, bits in packed.items()
            if name.startswith(start)
        }
    return Contents(
        metrics,
        read_rows(folder / "tables/devices.csv"),
        _small(_read_curves(folder / "curves.parquet")),
        answers,
    )


def _read_curves(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ZtwError(f"{path}: is missing; every published study has one")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ZtwError(
            f"{path}: cannot be read ({reason(error, path)}); restore it as it was published"
        ) from error


def joined(study: Study, before: Contents, new: Contents) -> Contents:
    """Both, in the order of the study; of a pair that is in both the new one counts."""
    replaced, found = new.pairs, before.pairs | new.pairs
    order = {pair: place for place, pair in enumerate(pairs(study)) if pair in found}
    return Contents(
        _joined_rows(order, before.metrics, new.metrics, replaced),
        _joined_devices(before.devices, new.devices),
        _small(_joined_rows(order, before.curves, new.curves, replaced)),
        {pair: (new if pair in replaced else before).answers[pair] for pair in order},
    )


def backbone_accuracies(metrics: Metrics) -> dict[Cell, float]:
    """Test accuracy of the cells' backbones alone."""
    rows = metrics[metrics["metric"].eq("backbone_accuracy")]
    return {cell: value for (cell, _), value in zip(_pairs_of(rows), rows["value"], strict=True)}


def _joined_rows(
    order: Mapping[Pair, int], before: pd.DataFrame, new: pd.DataFrame, replaced: set[Pair]
) -> pd.DataFrame:
    kept = before[[pair not in replaced for pair in _pairs_of(before)]]
    both = pd.concat([plain(kept), plain(new)], ignore_index=True)
    places = pd.Series([order[pair] for pair in _pairs_of(both)])
    return both.iloc[places.argsort(kind="stable")].reset_index(drop=True)


def _pairs_of(rows: pd.DataFrame) -> Iterator[Pair]:
    for dataset, arch, seed, method in rows[IDENTITY].itertuples(index=False):
        yield Cell(dataset, arch, int(seed)), method


def _joined_devices(before: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a part; new hosts have the numbers after those there are."""
    known = max(map(_number, before))
    moved = [{**row, "host": f"host {known + _number(row)}"} for row in new]
    of_part = {(row["dataset"], row["arch"], str(row["seed"]), row["part"]): row for row in [*before, *moved]}
    return with_kinds(of_part.values())


def _number(row: Mapping[str, Any]) -> int:
    return int(row["host"].removeprefix("host "))


def write_contents(contents: Contents, target: Path) -> None:
    """What `of_published` reads."""
    (target / "tables").mkdir()
    write_metrics(contents.metrics, target / "tables/metrics.csv")
    write_csv(pd.DataFrame(contents.devices, columns=COLUMNS), target / "tables/devices.csv")
    _write_curves(contents.curves, target / "curves.parquet")
    packed = {
        f"{cell}/{method}/{name}": _packed(right)
        for (cell, method), own in contents.answers.items()
        for name, right in own.items()
    }
    samples = {
        str(cell): str(len(right)) for (cell, _), own in contents.answers.items() for right in own.values()
    }
    write_tensors(target / "answers.safetensors", packed, samples)


def _small(curves: pd.DataFrame) -> pd.DataFrame:
    names = dict.fromkeys(("dataset", "arch", "method", "split"), "category")
    return curves.astype(names | {"seed": "int64", "accuracy": "float32", "relative_cost": "float32"})


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Categories as text: those of two frames differ."""
    return rows.astype({name: "str" for name in rows if isinstance(rows[name].dtype, pd.CategoricalDtype)})


def _write_curves(curves: pd.DataFrame, path: Path) -> None:
    """A number's first bytes beside each other, its second ones, ...: a third less than plain zstd."""
    numbers = [name for name in CURVE if curves[name].dtype.kind == "f"]
    curves.to_parquet(
        path,
        index=False,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in CURVE if name not in numbers],
        column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
    )


def _packed(right: Tensor) -> Tensor:
    """0 or 1 (N,) -> 8 of them a byte."""
    bits = torch.nn.functional.pad(right, (0, -len(right) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, samples: int) -> Tensor:
    return (packed[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:samples]
