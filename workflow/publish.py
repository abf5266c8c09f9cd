"""Publish a finished study in results/reference/<study>: small, with all that its tables and figures are made of.

usage: python workflow/publish.py CONFIG [--add] [--what TEXT] [--machine TEXT] [--logits SET ...]
       python workflow/publish.py --rebuild FOLDER TARGET     a published study's tables and figures, made again

--add: what is finished of the study's seeds and methods, beside what is published of it; the rest is not in the tables.
So seeds can be computed on several machines, by copies of CONFIG, in other folders, that name fewer of them.
--logits: the IC sets whose predictions for validation and test images (first seed) are published too.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from published_cells import Contents, joined, of_published, of_run, pairs, plain, write_contents
from published_checks import check_addition, check_settings

from ztw.errors import ZtwError
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.published_logits import write_published
from ztw.evaluation.saving import load
from ztw.exits.logits import read_predictions
from ztw.files import read_json, sha256, write_json
from ztw.jobs.aggregate import ResultFiles, TableFiles, write_all
from ztw.jobs.compare_methods import compare_methods
from ztw.jobs.plot_figures import FigureFiles, plot_figures
from ztw.models.costs import macs
from ztw.progress import describe
from ztw.study.config import check_study, read_config, study_name
from ztw.study.layout import Cell
from ztw.study.provenance import code_version
from ztw.tensors import write_tensors

ROOT = Path(__file__).parents[1]
Times = dict[str, list[dict[str, Any]]]  # of latency.json: "rows", "left_out"


def publish(
    config: Path, target: Path, what: str, machine: str, logits: list[str], add: bool = False
) -> None:
    """Put a study's results into `target`; a folder of before is replaced when the new one is whole.

    add: what is finished of the study beside what `target` has of it, instead of the whole study; of a pair of a
    cell and a method that is in both the new one counts. Raises ZtwError when nothing, or without `add` not all,
    is finished, when a result was computed with other settings than the config has, and when a result of `target`
    would be lost, or stand beside one of another training of the same cell.
    """
    study, folder = check_study(read_config(config)), Path("results") / study_name(config)
    new = whole = of_run(study, folder)
    if not add and (missing := [pair for pair in pairs(study) if pair not in new.pairs]):
        cell, method = missing[0]
        raise ZtwError(
            f"{folder}: {method} of {cell} is not finished; run make reproduce CONFIG={config} first"
        )
    check_settings(study, folder, new)
    logits_of_run = _logits(folder)
    facts = {"what": what, "runs": [_facts_of_run(folder, new, machine)], "logits_sha256": logits_of_run}
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch, target.name)
        made.mkdir()
        published = target if add and target.is_dir() else None
        if published:
            before, known = of_published(study, published), read_json(published / "provenance.json")
            hashes = known["logits_sha256"]
            changed = {file for file, own in logits_of_run.items() if hashes.get(file, own) != own}
            check_addition(study, published, before, new, changed)
            whole = joined(study, before, new)
            _keep_logits(published, made, new)
            facts = _joined_facts(known, facts)
        write_contents(whole, made)
        for dataset, arch in study.cells if study.latency.batch_sizes else ():
            cells = [Cell(dataset, arch, seed) for seed in study.seeds]
            _copy_times(cells, published, folder, new, made)
        for name, (dataset, arch) in product(logits, study.cells):
            _publish_logits(folder, made, Cell(dataset, arch, study.seeds[0]), name)
        shutil.copyfile(config, made / "config.yaml")
        write_json(made / "provenance.json", facts)
        rebuild(made, Path(scratch, "again"))
        for kind, suffixes in {"tables": (".csv", ".md", ".tex"), "figures": (".png",)}.items():
            (made / kind).mkdir(exist_ok=True)
            for file in Path(scratch, "again", kind).iterdir():
                if file.suffix in suffixes:
                    shutil.copyfile(file, made / kind / file.name)
        if not published:
            shutil.copyfile(folder / "tables/pipeline.csv", made / "tables/pipeline.csv")
        for seal in made.rglob(".*.sha256"):  # git vouches for what is published
            seal.unlink()
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _facts_of_run(folder: Path, found: Contents, machine: str) -> dict[str, Any]:
    """Where numbers come from; seconds: of the last whole call of `make reproduce`, by rule.

    trainings: file of a network -> on what, with what and how long it was trained; IC sets trained alike share a pass.
    """
    pipeline = folder / "tables/pipeline.csv"
    seconds = pd.read_csv(pipeline).set_index("rule")["seconds"].items() if pipeline.is_file() else ()
    methods: dict[str, list[str]] = {}
    for cell, method in found.answers:
        methods.setdefault(str(cell), []).append(method)
    cell, method = next(iter(found.answers))
    return {
        "date": date.today().isoformat(),
        "machine": machine,
        "published_at": code_version(),
        "versions": read_json(folder / str(cell) / f"metrics/{method}.json")["versions"],
        "seconds": {rule: round(float(took)) for rule, took in seconds},
        "methods": {cell: " ".join(own) for cell, own in methods.items()},
        "trainings": _trainings(folder, {cell.dataset for cell, _ in found.answers}),
    }


def _trainings(folder: Path, datasets: set[str]) -> dict[str, dict[str, Any]]:
    patterns = product(datasets, ("backbone.json", "ics/*.json"))
    files = [file for dataset, pattern in patterns for file in (folder / dataset).rglob(pattern)]
    facts = {file.relative_to(folder).as_posix(): read_json(file) for file in sorted(files)}
    return {
        name: {
            "seconds": round(sum(row["seconds"] for row in of_one["history"])),
            **{key: of_one[key] for key in ("device", "precision", "threads", "versions")},
        }
        for name, of_one in facts.items()
    }


def _joined_facts(known: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Of earlier runs only what still counts."""
    (last,) = facts["runs"]
    runs = []
    for run in known["runs"]:
        left = {
            cell: " ".join(
                method for method in own.split() if method not in last["methods"].get(cell, "").split()
            )
            for cell, own in run["methods"].items()
        }
        if counts := {cell: own for cell, own in left.items() if own}:
            runs.append({**run, "methods": counts})
    return {
        "what": facts["what"] or known["what"],
        "runs": [*runs, last],
        "logits_sha256": known["logits_sha256"] | facts["logits_sha256"],
    }


def _logits(folder: Path) -> dict[str, str]:
    """File of predictions -> SHA-256."""
    return {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*.safetensors"))
        if any("predictions" in part for part in file.parts)
    }


def _keep_logits(published: Path, target: Path, new: Contents) -> None:
    """Published logits, but for cells that the run computed anew."""
    anew = {str(cell) for cell, _ in new.answers}
    for file in (published / "predictions").rglob("*.safetensors"):
        place = file.relative_to(published)
        if place.parent.relative_to("predictions").as_posix() not in anew:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / place)


def _copy_times(cells: list[Cell], published: Path | None, run: Path, new: Contents, target: Path) -> None:
    """The measured times of one seed: those with the most methods, published or of the run; of equals those published.

    Times of two runs never share a table, because they may be of two machines: those of a method that was computed
    again are left out where the published ones stay.
    """
    anew = {cell: {method for other, method in new.pairs if other == cell} for cell in cells}
    found: list[tuple[Cell, Times]] = []
    if published:
        for cell in cells:
            known = _times(published / f"latency/{cell}/latency.json")
            found.append((cell, _of_methods(known, _methods(known) - anew[cell])))
    for cell in cells:
        found.append((cell, _of_methods(_times(run / f"{cell}/latency.json"), anew[cell])))
    cell, times = max(found, key=lambda of_cell: len(_methods(of_cell[1])))
    if _methods(times) - {BACKBONE}:
        write_json(target / f"latency/{cell}/latency.json", {**asdict(cell), **times})


def _times(file: Path) -> Times:
    """What was timed, without the name of the machine; nothing where there is no file."""
    facts = read_json(file) if file.is_file() else {"rows": []}
    rows = [{key: row[key] for key in row if key != "host"} for row in facts["rows"]]
    return {"rows": rows, "left_out": facts.get("left_out", [])}


def _methods(times: Times) -> set[str]:
    return {row["method"] for row in times["rows"]}


def _of_methods(times: Times, methods: set[str]) -> Times:
    """The times of some methods, and of the backbone beside them; in older files that is beside all."""
    known = {None, BACKBONE, *methods} if methods else set()
    return {key: [one for one in times[key] if one.get("beside", one["method"]) in known] for key in times}


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
    write_published(path, splits, macs(network), macs(network.backbone))


def rebuild(published: Path, target: Path) -> None:
    """Make the tables and figures of a published study again, from its metrics, curves, answers and times alone."""
    study = check_study(read_config(published / "config.yaml"))
    tables, figures = target / "tables", target / "figures"
    tables.mkdir(parents=True)
    differences = str(tables / "differences.csv")
    contents = of_published(study, published)
    answers = {}
    for (cell, method), own in contents.answers.items():
        answers[cell, method] = str(target / "answers" / str(cell) / f"{method}.safetensors")
        write_tensors(answers[cell, method], own)
    compare_methods(answers, study.evaluation, differences, print)
    times = [str(file) for file in sorted(published.glob("latency/**/latency.json"))]
    named = {
        name: str(tables / f"{name}.csv") for name in ("per_exit", "allowed_loss", "comparison", "devices")
    }
    write_all(
        contents.metrics,
        contents.devices,
        list(study.methods),
        study.evaluation,
        ResultFiles([], differences, times, ROOT / "config/published.csv"),
        TableFiles(
            metrics=str(tables / "metrics.csv"),
            **{kind: str(tables / f"accuracy_at_budget.{kind}") for kind in ("csv", "md", "tex")},
            **named,
            times=[str(tables / f"latency.{kind}") for kind in ("csv", "md") if times],
        ),
        partial=True,
    )
    curves = plain(contents.curves)
    for dataset, arch in study.cells:
        there = {method for cell, method in contents.pairs if (cell.dataset, cell.arch) == (dataset, arch)}
        if not there:
            continue
        of_cell = target / f"{dataset}-{arch.replace('/', '-')}.parquet"
        curves[curves["dataset"].eq(dataset) & curves["arch"].eq(arch)].to_parquet(of_cell)
        timed = any((published / "latency" / dataset / arch).glob("seed*/latency.json"))
        files = FigureFiles(
            str(tables / "metrics.csv"), [str(of_cell)], str(tables / "latency.csv") if timed else None
        )
        families = {method: family for method, family in study.families.items() if method in there}
        stem = str(figures / "-".join([dataset, *Path(arch).parts]))
        plot_figures((dataset, arch), families, study.evaluation, files, stem, print)


def main() -> int:
    """Publish or rebuild; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--add", action="store_true", help="beside what is published of the study")
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
            publish(given.config, target, given.what, given.machine, given.logits, given.add)
        else:
            parser.error("give the CONFIG of a finished study, or --rebuild FOLDER TARGET")
    except (ZtwError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
