"""Publish a finished study in results/reference/<study>: small, with all that its tables and figures are made of.

usage: python workflow/publish.py CONFIG [--what TEXT] [--machine TEXT] [--logits SET ...]
       python workflow/publish.py --rebuild FOLDER TARGET     a published study's tables and figures, made again

--logits: the IC sets whose predictions for validation and test images (first seed) are published too.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.evaluation.reference import write_published
from ztw.evaluation.saving import load
from ztw.exits.logits import read_predictions
from ztw.files import read_json, sha256, write_json
from ztw.jobs.aggregate import ResultFiles, TableFiles, write_all
from ztw.jobs.compare_methods import compare_methods
from ztw.jobs.plot_figures import FigureFiles, plot_figures
from ztw.models.costs import macs
from ztw.models.operations import backbone_macs
from ztw.progress import describe
from ztw.reporting.readable import read_rows
from ztw.reporting.results import read_curves, read_metrics
from ztw.study.config import check_study, read_config, study_name
from ztw.study.provenance import code_version
from ztw.study.settings import Cell, Study
from ztw.tensors import read_metadata, read_tensors, write_tensors

ROOT = Path(__file__).parents[1]
# of the curves: what a figure or another choice of thresholds needs
CURVE = ["dataset", "arch", "seed", "method", "split", "parameter", "accuracy", "relative_cost"]


def publish(config: Path, target: Path, what: str, machine: str, logits: list[str]) -> None:
    """Copy what is small and make small what is not; a folder of before is replaced when the new one is whole."""
    study, folder = check_study(read_config(config)), Path("results") / study_name(config)
    if not (folder / "report.html").is_file():
        raise ZtwError(f"{folder}: is not finished; run make reproduce CONFIG={config} first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch, target.name)
        made.mkdir()
        _write(study, folder, made, logits)
        shutil.copyfile(config, made / "config.yaml")
        pipeline = pd.read_csv(folder / "tables/pipeline.csv").set_index("rule")
        facts = {
            "what": what,
            "date": date.today().isoformat(),
            "machine": machine,
            "published_at": code_version(),
            "versions": read_json(next(folder.rglob("metrics/*.json")))["versions"],
            "seconds": {rule: round(float(seconds)) for rule, seconds in pipeline["seconds"].items()},
            "logits_sha256": {
                file.relative_to(folder).as_posix(): sha256(file)
                for file in sorted(folder.rglob("*.safetensors"))
                if any("predictions" in part for part in file.parts)
            },
        }
        write_json(made / "provenance.json", facts)
        for seal in made.rglob(".*.sha256"):  # git vouches for what is published
            seal.unlink()
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _write(study: Study, folder: Path, target: Path, logits: list[str]) -> None:
    """Tables, figures, curves, answers, times and logits."""
    for kind, patterns in {"tables": ("*.csv", "*.md", "*.tex"), "figures": ("*.png",)}.items():
        (target / kind).mkdir()
        for pattern in patterns:
            for file in sorted((folder / kind).glob(pattern)):
                shutil.copyfile(file, target / kind / file.name)
    _write_curves(_curves(study, folder), target / "curves.parquet")
    answers, samples = {}, {}
    for cell, method in product(_cells(study), study.methods):
        for budget, right in read_tensors(folder / str(cell) / f"answers/{method}.safetensors").items():
            answers[f"{cell}/{method}/{budget}"] = _packed(right)
            samples[str(cell)] = str(len(right))
    write_tensors(target / "answers.safetensors", answers, samples)
    for dataset, arch in study.cells if study.latency.batch_sizes else ():
        place = Path(dataset, arch, f"seed{study.seeds[0]}", "latency.json")
        (target / "latency" / place).parent.mkdir(parents=True)
        shutil.copyfile(folder / place, target / "latency" / place)
    for name in logits:
        for dataset, arch in study.cells:
            _publish_logits(folder, target, Cell(dataset, arch, study.seeds[0]), name)
    _hide_host(target / "tables/devices.csv")


def _cells(study: Study) -> list[Cell]:
    return [Cell(dataset, arch, seed) for dataset, arch in study.cells for seed in study.seeds]


def _curves(study: Study, folder: Path) -> pd.DataFrame:
    files = [
        str(folder / str(cell) / f"curves/{method}.parquet")
        for cell in _cells(study)
        for method in study.methods
    ]
    curves = read_curves(files)[CURVE].drop_duplicates()
    names = dict.fromkeys(("dataset", "arch", "method", "split"), "category")
    return curves.astype(names | {"seed": "int16", "accuracy": "float32", "relative_cost": "float32"})


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


def _publish_logits(folder: Path, target: Path, cell: Cell, name: str) -> None:
    place = folder / str(cell)
    of_set = [
        file.parent
        for file in sorted(place.glob("networks/*/network.json"))
        if any(Path(part["file"]).stem == name for part in read_json(file)["weights"])
    ]
    if not of_set:
        raise ZtwError(f"--logits {name}: no method of the study has that IC set")
    network, _ = load(of_set[0])
    network.ensemble = None  # what the single exits cost
    splits = {
        split: read_predictions(place / f"predictions/{name}/{split}.safetensors")
        for split in ("validation", "test")
    }
    path = target / "predictions" / str(cell) / f"{name}.safetensors"
    write_published(path, splits, macs(network), backbone_macs(network.backbone))


def _hide_host(path: Path) -> None:
    devices = pd.read_csv(path, keep_default_na=False, dtype=str)
    hosts = {host: f"host {number}" for number, host in enumerate(dict.fromkeys(devices["host"]), 1)}
    devices.assign(host=devices["host"].map(hosts)).to_csv(path, index=False, lineterminator="\r\n")


def rebuild(published: Path, target: Path) -> None:
    """Make the tables and figures of a published study again, from its metrics, curves, answers and times alone."""
    study = check_study(read_config(published / "config.yaml"))
    tables, figures = target / "tables", target / "figures"
    tables.mkdir(parents=True)
    differences = str(tables / "differences.csv")
    compare_methods(dict(_unpack_answers(study, published, target)), study.evaluation, differences, print)
    times = [str(file) for file in sorted(published.glob("latency/**/latency.json"))]
    named = {
        name: str(tables / f"{name}.csv") for name in ("per_exit", "allowed_loss", "comparison", "devices")
    }
    write_all(
        read_metrics(published / "tables/metrics.csv"),
        read_rows(published / "tables/devices.csv"),
        list(study.methods),
        study.evaluation,
        ResultFiles([], differences, times, ROOT / "config/published.csv"),
        TableFiles(
            metrics=str(tables / "metrics.csv"),
            **{kind: str(tables / f"accuracy_at_budget.{kind}") for kind in ("csv", "md", "tex")},
            **named,
            times=[str(tables / f"latency.{kind}") for kind in ("csv", "md") if times],
        ),
    )
    curves = pd.read_parquet(published / "curves.parquet").astype(
        dict.fromkeys(CURVE[:2] + CURVE[3:5], "str")
    )
    for dataset, arch in study.cells:
        own = target / f"{dataset}-{arch.replace('/', '-')}.parquet"
        curves[curves["dataset"].eq(dataset) & curves["arch"].eq(arch)].to_parquet(own)
        files = FigureFiles(
            str(tables / "metrics.csv"), [str(own)], str(tables / "latency.csv") if times else None
        )
        stem = str(figures / "-".join([dataset, *Path(arch).parts]))
        plot_figures((dataset, arch), study.families, study.evaluation, files, stem, print)


def _unpack_answers(study: Study, published: Path, target: Path) -> Iterator[tuple[tuple[Cell, str], str]]:
    """(cell, method) -> a file of its answers as `evaluate` wrote them."""
    file = published / "answers.safetensors"
    packed, samples = read_tensors(file), read_metadata(file)
    for cell, method in product(_cells(study), study.methods):
        start, path = f"{cell}/{method}/", str(target / "answers" / str(cell) / f"{method}.safetensors")
        own = {
            name.removeprefix(start): _unpacked(bits, int(samples[str(cell)]))
            for name, bits in packed.items()
            if name.startswith(start)
        }
        write_tensors(path, own)
        yield (cell, method), path


def main() -> int:
    """Publish or rebuild; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--what", default="", help="what the study is, in a sentence")
    parser.add_argument("--machine", default="", help="what it was computed on")
    parser.add_argument("--logits", nargs="*", default=[], metavar="SET")
    parser.add_argument("--rebuild", nargs=2, type=Path, metavar=("FOLDER", "TARGET"))
    given = parser.parse_args()
    try:
        if given.rebuild:
            rebuild(*given.rebuild)
        elif given.config:
            target = ROOT / "results/reference" / study_name(given.config)
            publish(given.config, target, given.what, given.machine, given.logits)
        else:
            parser.error("give the CONFIG of a finished study, or --rebuild FOLDER TARGET")
    except (ZtwError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
