"""Estimate the cost of a study: jobs, hours, bytes, files, and the time and memory of Snakemake's planning.

usage: python bench/scale.py CONFIG [TIMES]     TIMES: multiply the number of seeds; prints a table in Markdown

Jobs and planning are measured by a dry run. Hours are scaled from the jobs of results/reference/quick by MACs. They
hold within a factor of about two, for that study's machine. Bytes are counted from shapes.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import yaml

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.jobs.cell import CellNetworks
from ztw.study.config import check_study, read_config
from ztw.study.images import image_channels, image_size
from ztw.study.layout import Cell, Layout
from ztw.study.settings import Study
from ztw.study.training_settings import BackboneBuild

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "results/reference/quick/tables/pipeline.csv"
# (training, test) images of data sets of a fixed size
IMAGES = {
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tiny_imagenet": (100_000, 10_000),
    "svhn": (73_257, 26_032),
    "digits": (1_438, 359),
}
STATS = re.compile(r"^(\w+) +(\d+)$", re.M)
OUTPUTS = re.compile(r"^    output: (.+)$", re.M)


def plan(config: Path) -> tuple[dict[str, int], int, float, float]:
    """Dry-run a study without results: return rule -> jobs, number of output files, seconds of CPU, peak MB."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--cores", "1"]
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, "--configfile", config.absolute(), "--dry-run"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    jobs = {rule: int(count) for rule, count in STATS.findall(done.stdout) if rule != "total"}
    outputs = sum(len(line.split(", ")) for line in OUTPUTS.findall(done.stdout))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return jobs, outputs, seconds, after.ru_maxrss / 1024


@cache
def works(config: Path) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Return `cell_work` of every data set and architecture of a study, static networks included."""
    study = check_study(read_config(config))
    return [cell_work(study, dataset, arch) for dataset, arch in study.backbones]


def cell_work(study: Study, dataset: str, arch: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return rule -> work of one job, and kind of file -> bytes, of one cell.

    The unit of work is a MAC, or a logit for rules that compute on logits only.
    """
    settings = study.backbones[dataset, arch]
    sets = settings.ics.sets if (dataset, arch) in study.cells else {}
    num_classes = int(DATASETS[dataset].num_classes or 0)
    record = {
        "num_classes": num_classes,
        "channels": image_channels(study.data, dataset),
        "size": image_size(study.data, dataset),
    }
    build = BackboneBuild(**{key: getattr(settings.backbone, key) for key in BackboneBuild.model_fields})
    networks = CellNetworks(Layout(ROOT), Cell(dataset, arch, study.seeds[0]), build, sets)
    networks.__dict__["record"] = record  # replaces the record of the data set, which need not exist
    backbone = networks.untrained_backbone()
    base, images = ztw.macs(backbone), IMAGES[dataset]
    training = images[0] * (1 - settings.data.validation_fraction)
    fitted = [study.ensembles.sets[m.ensemble] for m in study.methods.values() if m.ensemble]
    samples = max((e.samples or training for e in fitted if e.fit_on == "train"), default=0)
    seen = samples + images[0] - training + images[1]
    weights = parameter_bytes(backbone)
    work = Counter(train_backbone=settings.backbone.epochs * training * 3 * base)
    size = Counter(weights=weights)
    for name, ics in sets.items():
        network = networks.attach(networks.untrained_backbone(), name)
        heads, exits = float(ztw.macs(network)[-1]) - base, len(network.heads) + 1
        if ics.trains_backbone:
            work["train_network"] += ics.epochs * training * 3 * (base + heads)
        else:
            # assumes one recipe: the frozen backbone then computes features once for all sets
            work["train_ics"] = (
                max(work["train_ics"], ics.epochs * training * base) + ics.epochs * training * 3 * heads
            )
        work["predict"] += seen * (base + heads)
        size["weights"] += parameter_bytes(network) - (0 if ics.trains_backbone else weights)
        size["predictions"] += seen * exits * num_classes * 4
        methods = [m for m in study.methods.values() if m.ics == name]
        work["evaluate"] += len(methods) * (seen - samples) * exits * num_classes
        work["fit_ensembles"] += sum(bool(m.ensemble) for m in methods) * samples * exits**2 * num_classes
    return dict(work), dict(size)


def parameter_bytes(module: object) -> float:
    """Return the bytes of all weights and buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())  # type: ignore[attr-defined]


def reference() -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the measured study's seconds per job (columns working, overhead, largest_mb) and work per job."""
    table = pd.read_csv(MEASURED).set_index("rule").drop("all")
    per_job = table[["working", "overhead"]].div(table["jobs"], axis=0).join(table["largest_mb"])
    ((work, _),) = works(ROOT / "config/quick.yaml")
    return per_job, work


def hours(config: Path, seeds: int, jobs: dict[str, int]) -> dict[str, float]:
    """Return rule -> hours of all its jobs, on the machine of the measured study."""
    per_job, known = reference()
    found = {}
    totals: Counter[str] = Counter()
    for work, _ in works(config):
        totals.update({rule: amount * seeds for rule, amount in work.items()})
    for rule, count in jobs.items():
        like = "train_backbone" if rule == "train_network" else rule  # the measured study has no such job
        if like not in per_job.index:
            continue
        seconds = count * per_job.overhead[like]
        seconds += per_job.working[like] * (totals[rule] / known[like] if rule in totals else count)
        found[rule] = seconds / 3600
    return found


def times_as_many_seeds(config: Path, times: int, folder: Path) -> Path:
    """Write the study with `times` as many seeds to a file; return the file's path."""
    study = yaml.safe_load(config.read_text())
    study["seeds"] = list(range(times * len(study["seeds"])))
    grown = folder / f"{config.stem}-{times}.yaml"
    grown.write_text(yaml.safe_dump(study, sort_keys=False))
    return grown


def main(config: Path, times: int) -> str:
    """Return the table of a study."""
    study = check_study(read_config(config))
    seeds, size = times * len(study.seeds), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        grown = times_as_many_seeds(config, times, Path(folder)) if times > 1 else config
        jobs, outputs, seconds, megabytes = plan(grown)
    spent = hours(config, seeds, jobs)
    for _, bytes_ in works(config):
        size.update({kind: amount * seeds for kind, amount in bytes_.items()})
    lines = [f"`{config.name}`: {len(study.cells)} x {seeds} cells", ""]
    lines += ["| rule | jobs | hours on the measured machine |", "|---|---:|---:|"]
    lines += [f"| `{rule}` | {count:,} | {spent.get(rule, 0):,.1f} |" for rule, count in sorted(jobs.items())]
    lines += [f"| all | {sum(jobs.values()):,} | {sum(spent.values()):,.0f} |", ""]
    lines += [f"- weights {size['weights'] / 1e9:.1f} GB, predictions {size['predictions'] / 1e9:.1f} GB"]
    lines += [f"- {outputs:,} output files"]
    lines += [f"- planning (a dry run): {seconds:.0f} s of CPU, {megabytes:.0f} MB"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
