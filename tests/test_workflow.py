"""Test the real DAG on the tiny study: run, repeated, interrupted, without MLflow, with broken files."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from rebuilt import assert_rebuilt
from tiny_study import ROOT, TINY, changed_config, command, copy_of, errors, jobs_done, run, shown, tables

import ztw
from ztw.data.record import read_study_record
from ztw.data.splits import cell_splits
from ztw.device import device_name
from ztw.evaluation.metrics import exit_accuracy
from ztw.exits.logits import read_predictions, read_together
from ztw.exits.sweep import simulate_exits
from ztw.files import read_json, sha256
from ztw.jobs.given import GivenCell
from ztw.jobs.import_predictions import ImportPredictionsSettings, import_predictions
from ztw.jobs.job import Job
from ztw.reporting.report import write_report
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell, Layout
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import DataSettings, MethodSettings

pytestmark = pytest.mark.usefixtures("data_root")


def test_it_writes_the_files_of_the_readme(finished):
    study = finished / "results/tiny"
    cell = study / "digits/resnet8/seed0"
    for path in (
        cell / "backbone.safetensors",
        cell / "backbone.json",
        cell / "ics/cascade_detached.json",
        cell / "predictions/independent/test.safetensors",
        cell / "ensembles/independent/geometric.json",
        cell / "curves/pabee.parquet",
        cell / "runs.json",
        cell / "latency.json",
        study / "tables/latency.md",
        study / "tables/differences.csv",
        study / "tables/frontier.md",
        study / "tables/training.csv",
        study / "figures/digits-resnet8-frontier.png",
        study / "tables/devices.csv",
        study / "figures/digits-resnet8-accuracy_time.png",
        study / "mlflow.db",
        study / "report.html",
        study / "pipeline.html",
        study / "gallery/digits-resnet8.json",
        study / "figures/digits-resnet8-gallery.pdf",
        study / "figures/digits-resnet8-accuracy_cost.png",
        study / "figures/digits-resnet8-accuracy_cost_all.png",
        study / "figures/digits-resnet8-accuracy_time_all.png",
        study / "figures/digits-resnet8-exit_shares.pdf",
    ):
        assert path.stat().st_size > 0, path
    assert not (study / "tables/comparison.csv").exists(), "no published value is filled in"
    assert set(pd.read_csv(study / "tables/devices.csv")["kinds"]) == {1}
    where = {"device", "precision", "threads", "host"}
    for file in ("backbone", "ics/cascade", "ics/depth_weighted", "predictions/cascade/test"):
        assert where <= read_json(cell / f"{file}.json").keys(), file
    assert all(where <= row.keys() for row in read_json(cell / "latency.json")["rows"])
    parts = [part["part"] for part in read_json(cell / "metrics/ztw.json")["computed"]]
    assert parts == ["backbone", "ics cascade_detached", "predictions cascade_detached"]
    parts = [part["part"] for part in read_json(cell / "metrics/resnet14.json")["computed"]]
    assert parts == ["backbone resnet14", "predictions resnet14"], "not the cell's own backbone"


def test_the_report_has_the_study_s_config_and_images(finished):
    """The report can be written again from the folder alone."""
    study = finished / "results/tiny"
    config = study / "config.yaml"
    assert config.read_text().startswith(TINY.read_text().splitlines()[0] + "\n")
    assert check_study(read_config(config)) == check_study(read_config(TINY))
    again = write_report(study, finished / "again.html").read_text()
    assert again == (study / "report.html").read_text()
    assert "Who leaves early?" in again


def test_the_captions_of_snakemake_s_report_are_rendered(finished):
    report = (finished / "results/tiny/pipeline.html").read_text()
    assert "thresholds are chosen on the validation split" in report
    assert "Data set digits, architecture resnet8, seeds 0" in report
    assert re.findall(r".{20}``[a-z].{20}", report) == [], "markup that reStructuredText did not take as such"


def test_every_method_s_network_can_be_loaded(finished, tmp_path):
    cell = finished / "results/tiny/digits/resnet8/seed0"
    methods = yaml.safe_load(TINY.read_text())["methods"]
    assert {path.name for path in (cell / "networks").iterdir()} == methods.keys()
    for name, method in methods.items():
        network, rule = ztw.load(cell / "networks" / name, budget="max")
        places = [cell / f"predictions/{method.get('ics')}"]
        if "ics" not in method:  # a static network, or a cascade of static rows
            members = [methods[row]["static"] for row in method.get("cascade_of", [name])]
            places = [cell.parents[1] / member / "seed0/backbone_predictions" for member in members]
        logits, labels = read_together([place / "validation.safetensors" for place in places])
        images = cell_splits(
            read_study_record(
                [f"{finished}/results/tiny/data/digits/{part}.json" for part in ("train", "test")]
            ),
            DataSettings(validation_fraction=0.2),
            seed=0,
        )["validation"]
        again, _ = ztw.predict(network, images, progress=False)
        torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)
        answers = logits if network.ensemble is None else network.ensemble(logits)
        assert rule is not None
        _, answering = simulate_exits(answers, rule)
        accuracy = (answers[answering, torch.arange(len(labels))].argmax(-1) == labels).double().mean()
        curves = pd.read_parquet(cell / f"curves/{name}.parquet")
        assert accuracy == pytest.approx(curves[curves.split == "validation"].accuracy.max())
        batch, _ = next(images.batches(4))
        assert network.infer(batch, rule).exit_index.shape == (4,)
        assert network.class_names == tuple("0123456789")
        assert network.normalisation is not None
    ztw.save(network, tmp_path / "copy", rule)
    copied, same = ztw.load(tmp_path / "copy")
    assert same == rule
    torch.testing.assert_close(ztw.predict(copied, images, progress=False)[0], again)
    assert ztw.load(cell / "networks/ztw")[1] == ztw.load(cell / "networks/ztw", budget=0.9)[1], (
        "first feasible"
    )
    with pytest.raises(
        ztw.ZtwError, match=r"budget 0.3: .*ztw/network.json has rules for 0.9, 1.0, 1.5, max"
    ):
        ztw.load(cell / "networks/ztw", budget=0.3)


def test_the_first_seed_s_networks_are_models_in_mlflow(finished):
    """The first seed is also timed: its runs have the relative times of the methods."""
    store = MlflowClient(f"sqlite:///{finished}/results/tiny/mlflow.db")
    for seed, first in ((0, True), (1, False)):
        runs = read_json(finished / f"results/tiny/digits/resnet8/seed{seed}/runs.json")["runs"]
        (of_cell,) = (store.get_run(cell).data.metrics for cell in runs["cell"].values())
        for method, own in runs["method"].items():
            outputs = store.get_run(own).outputs
            assert bool(outputs and outputs.model_outputs) == first
            headlines = store.get_run(own).data.metrics
            assert headlines["at_max/accuracy"] == of_cell[f"{method}/at_max/accuracy"]
            assert headlines["at_max/accuracy"] == headlines["held-out/accuracy_at_max"]
            assert (
                ("at_max/relative_time" in headlines)
                == (f"{method}/at_max/relative_time" in of_cell)
                == first
            )


@pytest.fixture(scope="module")
def publishing():
    """The module of `workflow/publish.py`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "workflow"))
        import publish

        yield publish


@pytest.fixture(scope="module")
def published(finished, publishing, tmp_path_factory) -> Path:
    """The folder of the published tiny study, with all logits."""
    target = tmp_path_factory.mktemp("published") / "reference/tiny"
    with chdir(finished):
        publishing.publish(TINY, target, "one", ["all"], every_seed=True, thumbnails=True)
    return target


def test_a_published_study_is_made_again_from_its_files(
    finished, published, tmp_path, monkeypatch, publishing
):
    monkeypatch.chdir(finished)
    target, study = tmp_path / "reference/tiny", Path("results/tiny")
    shutil.copytree(published, target)
    shutil.copytree(target, tmp_path / "again/tiny", ignore=shutil.ignore_patterns("tables", "figures"))
    publishing.rebuild(tmp_path / "again/tiny")
    assert_rebuilt(target, tmp_path / "again/tiny")
    for table in (study / "tables").glob("[!.]*"):
        if table.name != "devices.csv":  # names hosts
            assert (target / "tables" / table.name).read_bytes() == table.read_bytes(), table
    assert not list(target.rglob(".*")), "neither seals nor what is left of a copy"
    assert not list(target.rglob("*.html"))
    assert (target / "figures/digits-resnet8-gallery.png").is_file()
    # from logits in half precision and the study's images
    mine, its = (read_json(folder / "gallery/digits-resnet8.json") for folder in (target, study))
    assert mine == its
    host = read_json(study / "digits/resnet8/seed0/metrics/ztw.json")["computed"][0]["host"]
    assert not [path for path in target.rglob("*.json") if f'"{host}"' in path.read_text()]
    seed0, seed1 = (read_json(target / f"digits/resnet8/seed{seed}/provenance.json") for seed in (0, 1))
    assert (seed0["machine"], seed0["seconds"]["all"] > 0) == ("one", True)
    trained = seed1["trainings"]["digits/resnet8/seed1/ics/cascade.json"]
    assert (trained["device"], trained["precision"]) == (device_name(torch.device("cpu")), "fp32")
    assert trained["versions"]["torch"] == torch.__version__
    assert "digits/resnet14/seed0/backbone.json" in seed0["trainings"], "of a static network beside it"
    for logits in ("digits/resnet8/seed1/predictions/cascade", "digits/resnet14/seed1/backbone_predictions"):
        assert seed1["logits_sha256"][f"{logits}/test.safetensors"] == sha256(
            study / logits / "test.safetensors"
        )
    found = ztw.load_predictions("tiny/digits/resnet8/seed0/independent", tmp_path / "reference")
    expected = read_predictions(study / "digits/resnet8/seed0/predictions/independent/test.safetensors")
    torch.testing.assert_close(found.test[0], expected[0], atol=1e-6, rtol=2**-10)
    network, _ = ztw.load(study / "digits/resnet8/seed0/networks/sdn")
    assert torch.equal(found.cost, ztw.macs(network))
    message = (
        "--logits other: neither an IC set nor a static row .*; known: independent, .*, resnet14, .*, all$"
    )
    with pytest.raises(ztw.ZtwError, match=message):
        publishing.publish(TINY, target, "", ["other"])


def test_all_logits_are_published_with_the_weights_of_ensembles(finished, published):
    cell, run = published / "digits/resnet8/seed1", finished / "results/tiny/digits"
    named = {path.stem for path in (cell / "predictions").iterdir()}
    assert named == {
        *("independent", "cascade", "cascade_detached", "depth_weighted"),
        *("resnet14", "resnet8"),
    }
    weighted = {path.stem for path in (cell / "ensembles").iterdir()}
    assert weighted == {"ensemble", "ztw", "ztw-few", "ztw-nostop", "ztw-arithmetic", "two"}
    static = ztw.load_predictions(cell / "predictions/resnet14.safetensors")
    logits, labels = read_predictions(run / "resnet14/seed1/backbone_predictions/validation.safetensors")
    torch.testing.assert_close(static.validation[0], logits, atol=1e-6, rtol=2**-10)
    assert torch.equal(static.validation[1], labels)
    small, large = (ztw.load(run / f"resnet8/seed1/networks/{row}")[0] for row in ("resnet8", "resnet14"))
    assert (static.cost.tolist(), static.base_cost) == ([ztw.macs(large.backbone)], ztw.macs(small.backbone))


def test_published_logits_of_networks_are_cells_of_a_study_from_logits(published, tmp_path):
    path = f"{published}/{{dataset}}/{{arch}}/seed{{seed}}/predictions/"
    statics = ("resnet8", "resnet14")
    sets = {
        name: LogitsSet(path=f"{path}{name}.safetensors", training="separate")
        for name in ("independent", *statics)
    }
    cell, layout = Cell("digits", "resnet8", 0), Layout(tmp_path)
    splits: dict[str, tuple[str, ...]] = dict.fromkeys(sets, ("validation", "test"))
    settings = ImportPredictionsSettings(sets, statics, splits, False, False, {})
    import_predictions(Job(layout), cell, settings)
    rows = {name: MethodSettings(static=name) for name in statics}
    rows |= {"sdn": MethodSettings(ics="independent"), "two": MethodSettings(cascade_of=statics)}
    found = {one.name: one for one in GivenCell(layout, cell, sets, rows).methods(lambda _: None)}
    costs = {name: one.costs["ztw"].cost / one.costs["ztw"].base for name, one in found.items()}
    for name in ("resnet8", "resnet14", "sdn"):
        values = {
            (row["metric"], row["exit"]): row["value"]
            for row in read_json(Layout(published).metrics(cell, name))["metrics"]
        }
        assert costs[name][0] == pytest.approx(values["relative_cost", 1], rel=1e-9)
        test = found[name].splits["test"]
        # One of 360 test images may be classified otherwise after rounding
        assert exit_accuracy(*astuple(test))[0] == pytest.approx(values["accuracy", 1], abs=0.003)
    assert costs["two"].tolist() == pytest.approx([1.0, 1.0 + float(costs["resnet14"])], rel=1e-9), (
        "a sample pays for every network that it reaches"
    )


def test_a_published_study_is_recomputed_without_ztw(published):
    script = [sys.executable, ROOT / "bench/recompute_frontier.py", published]
    # One of 360 test images may be classified otherwise after rounding
    done = subprocess.run([*script, "--tolerance", "0.006"], capture_output=True, text=True)
    assert done.returncode == 0, shown(done)
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped")]
    assert skipped == [
        "skipped (thresholds per_exit): sdn-entropy",
        "skipped (thresholds risk_controlled): sdn-risk",
    ] * 2 + ["skipped (not recomputed for all seeds): 0 rows"]


def seeds_of(published: Path) -> pd.Series:
    """Return method -> number of seeds of its accuracy at budget "max"."""
    rows = pd.read_csv(published / "tables/accuracy_at_budget.csv")
    return rows[rows["budget"].eq("max") & rows["protocol"].eq("held-out")].set_index("method")["n"]


def test_a_published_study_is_the_union_of_its_cells(
    finished, published, tmp_path, monkeypatch, publishing, capsys
):
    """Cells of two machines, published or copied, give the same tables as one run."""
    monkeypatch.chdir(copy_of(finished, tmp_path))
    cells, target = Path("results/tiny/digits/resnet8"), tmp_path / "parts/tiny"
    capsys.readouterr()
    (cells / "seed1").rename(tmp_path / "seed1")
    for file in ("metrics/pabee.json", "latency.json"):
        (cells / "seed0" / file).unlink()
    publishing.publish(TINY, target, "one", [])
    seeds = seeds_of(target)
    assert seeds["sdn"] == 1
    assert "pabee" not in seeds
    assert not [*target.glob("tables/latency.*"), *target.glob("figures/*accuracy_time*")]
    (target / "README.md").write_text("A test.\n")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "digits/resnet8/seed0: no results of pabee; their n is smaller"
    assert [line.split(":")[0] for line in told[1:]] == ["digits/resnet8/seed1"]
    (cells / "seed0").rename(tmp_path / "seed0")
    (tmp_path / "seed1").rename(cells / "seed1")
    publishing.publish(TINY, target, "another", [])
    assert (seeds_of(target)["pabee"], seeds_of(target)["sdn"]) == (1, 2)
    assert not (target / "tables/pipeline.csv").exists(), "it would be of one run"
    assert (target / "README.md").read_text() == "A test.\n"
    machines = [read_json(path)["machine"] for path in sorted(target.rglob("provenance.json"))]
    assert machines == ["one", "another"]
    shutil.copytree(published / "digits/resnet8/seed0", target / "digits/resnet8/seed0", dirs_exist_ok=True)
    shutil.copytree(published / "gallery", target / "gallery")
    publishing.rebuild(target)
    assert_rebuilt(published, target)


def test_what_is_not_published(finished, published, tmp_path, monkeypatch, publishing):
    monkeypatch.chdir(copy_of(finished, tmp_path))
    target, cells = tmp_path / "reference/tiny", Path("results/tiny/digits/resnet8")
    shutil.copytree(published, target)
    given = yaml.safe_load(TINY.read_text())

    def refused(config: Path, message: str, logits: tuple[str, ...] = ("all",)) -> None:
        before = {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}
        with pytest.raises(ztw.ZtwError, match=message):
            publishing.publish(config, target, "", list(logits), every_seed=True)
        assert before == {path: path.read_bytes() for path in target.parent.rglob("*") if path.is_file()}

    refused(
        changed_config(tmp_path, seeds=[0]),
        rf"^{target}/digits/resnet8/seed1/metrics/.*: {target}/config.yaml lacks its cell or method",
    )
    refused(
        changed_config(tmp_path, backbone={**given["backbone"], "lr": 0.05}),
        "^results/tiny/digits/resnet.*/backbone.json: computed with lr 0.1, the study has 0.05",
    )
    refused(
        changed_config(tmp_path, ensembles={**given["ensembles"], "samples": 7}),
        "^results/tiny/.*/ensembles/.*: computed with samples .*, the study has 7",
    )
    refused(TINY, f"^{target}/.*seed0/ensembles.*: is published, but results/.* --logits", ())
    (cells / "seed0/metrics/pabee.json").rename(tmp_path / "pabee.json")
    refused(TINY, f"^{target}/digits/resnet8/seed0/.*/pabee.*: is published, but results/")
    (cells / "seed0").rename(tmp_path / "seed0")
    refused(
        changed_config(tmp_path, evaluation={**given["evaluation"], "budgets": [0.9, "max"]}),
        rf"^{target}/digits/resnet8/seed0/config.yaml: computed with budgets .*, the study has \[0.9, 'max'\]",
    )
    shutil.rmtree(cells)
    refused(TINY, "^results/tiny: no cell is finished; run make reproduce")


# Methods of the tiny study that are scored again, and the format of the logits of each IC set
RESCORED = ("sdn", "pabee-original", "ztw", "ztw-few", "resnet14", "resnet8", "two")
SUFFIXES = {
    "independent": ".safetensors",
    "depth_weighted": ".npz",
    "cascade_detached": ".parquet",
    "resnet14": ".npz",
    "resnet8": ".safetensors",
}


def write_logits(finished: Path, folder: Path) -> None:
    """Write the logits of the tiny study's first seed, a file per IC set; an exit takes a ms per million MACs."""
    cell = finished / "results/tiny/digits/resnet8/seed0"
    methods = yaml.safe_load(TINY.read_text())["methods"]
    base = ztw.macs(ztw.load(cell / "networks/sdn")[0].backbone)
    for method in RESCORED:
        if "cascade_of" in methods[method]:  # its networks have files
            continue
        name = methods[method].get("ics", method)
        network, _ = ztw.load(cell / "networks" / method)
        network.ensemble = None
        cost, place = ztw.macs(network), cell / "predictions" / name
        if "static" in methods[method]:
            place = cell.parents[1] / name / "seed0/backbone_predictions"
        splits: dict[str, Any] = {path.stem: read_predictions(path) for path in place.glob("*.safetensors")}
        ztw.write_predictions(
            folder / f"logits/anything-{name}-seed0{SUFFIXES[name]}",
            **splits,
            cost=cost,
            base_cost=base,
            times=ztw.ExitTimes((cost / 1e6).tolist(), base / 1e6, "jax", "a TPU"),
            origin="of the tiny study",
        )


@pytest.fixture(scope="module")
def rescored(finished, tmp_path_factory) -> Path:
    """A folder in which a study from the logits of the tiny study's first seed has run, under other names."""
    folder = tmp_path_factory.mktemp("rescored")
    write_logits(finished, folder)
    tiny = yaml.safe_load(TINY.read_text())
    trained = {name: ics.get("training", "separate") for name, ics in tiny["ics"]["sets"].items()}
    connections = {name: ics["connection"] for name, ics in tiny["ics"]["sets"].items()}
    study = {key: tiny[key] for key in ("ensembles", "evaluation")}
    study["methods"] = {name: tiny["methods"][name] for name in RESCORED}
    study["evaluation"]["protocols"].remove("published")
    study |= {"datasets": ["anything"], "archs": ["of-mine"], "seeds": [0], "tracking": "none"}
    study["logits"] = {"times": True, "sets": {}}
    for name, suffix in SUFFIXES.items():
        study["logits"]["sets"][name] = {
            "path": f"logits/{{dataset}}-{name}-seed{{seed}}{suffix}",
            "training": trained.get(name, "joint"),
            "connection": connections.get(name, "independent"),
        }
    (folder / "rescored.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    command = [sys.executable, str(ROOT / "workflow/reproduce.py"), "rescored.yaml", "--cores", "1"]
    # no figures, no report: publishing draws them
    done = subprocess.run(
        [*command, "--", "aggregate"], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, shown(done)
    assert jobs_done(done.stdout) == {
        *("import_predictions", "fit_ensembles", "evaluate"),
        *("compute_latency", "compare_methods", "aggregate"),
    }
    assert (
        done.stdout.count("a study from logits has no networks: nothing to export, no models in MLflow") == 1
    )
    return folder


WHERE = ["method", "protocol", "budget", "exit", "metric"]


def rows_of(table: Path) -> dict[Any, str]:
    rows = pd.read_csv(table, keep_default_na=False, dtype=str)
    wanted = rows["seed"].eq("0") & rows["protocol"].ne("published") & rows["method"].isin(RESCORED)
    wanted &= ~rows["metric"].str.startswith("training_")  # a study from logits trains nothing
    return rows[wanted].set_index(WHERE)["value"].to_dict()


def test_logits_of_a_study_scored_again_give_its_numbers(finished, rescored):
    """To the last digit: rules, ensembles, costs, calibration."""
    trained, given = (
        rows_of(folder / f"results/{folder_name}/tables/metrics.csv")
        for folder, folder_name in ((finished, "tiny"), (rescored, "rescored"))
    )
    assert len(trained) > 200
    assert trained == given
    table = pd.read_csv(rescored / "results/rescored/tables/latency.csv")
    at_budgets = table[table["budget"].notna() & table["method"].isin(["sdn", "pabee-original"])]
    assert len(at_budgets) > 4
    assert at_budgets["relative_time"].to_list() == pytest.approx(
        at_budgets["relative_cost"].to_list(), abs=1e-5
    )
    (static,) = table[table["method"].eq("resnet14")].to_dict("records")
    assert static["relative_time"] == pytest.approx(static["relative_cost"], abs=1e-5)
    assert (
        "jax in fp32, batch size 1, 1 thread of a TPU; 100 %: "
        in (rescored / "results/rescored/tables/latency.md").read_text()
    )


def test_a_changed_file_of_logits_is_imported_again(rescored):
    config, file = rescored / "rescored.yaml", rescored / "logits/anything-depth_weighted-seed0.npz"
    assert planned(rescored, config, "aggregate") == set()
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    would = planned(rescored, config, "aggregate")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {"import_predictions", "fit_ensembles", "evaluate", "compute_latency", "aggregate"} <= would


def test_a_study_from_logits_is_published_as_any_other(rescored, tmp_path, monkeypatch, publishing):
    monkeypatch.chdir(rescored)
    target = tmp_path / "reference/rescored"
    publishing.publish(Path("rescored.yaml"), target, "this one", ["depth_weighted", "resnet14"])
    assert (target / "figures/anything-of-mine-accuracy_time.png").stat().st_size > 1000
    cell = target / "anything/of-mine/seed0"
    facts = read_json(cell / "provenance.json")
    assert (facts["trainings"], facts["origins"]["depth_weighted"]["note"]) == ({}, "of the tiny study")
    assert facts["origins"]["resnet14"]["file"] == "anything-resnet14-seed0.npz"
    found = ztw.load_predictions("rescored/anything/of-mine/seed0/depth_weighted", tmp_path / "reference")
    given = ztw.load_predictions(rescored / "logits/anything-depth_weighted-seed0.npz")
    torch.testing.assert_close(found.test[0], given.test[0], atol=1e-6, rtol=2**-10)
    assert (found.times, found.origin, found.base_cost) == (given.times, given.origin, given.base_cost)
    assert ztw.load_predictions(cell / "predictions/resnet14.safetensors").origin == "of the tiny study"
    study = yaml.safe_load((rescored / "rescored.yaml").read_text())
    study["logits"]["sets"]["depth_weighted"]["training"] = "separate"
    (tmp_path / "rescored.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(
        ztw.ZtwError, match=r"depth_weighted/test\.json: computed with training joint, the study has separate"
    ):
        publishing.publish(tmp_path / "rescored.yaml", target, "", ["depth_weighted"])


def test_every_file_of_numbers_is_sealed(finished):
    """Every file that another job reads has a SHA-256 beside it."""
    numbers = (".safetensors", ".parquet", ".json", ".csv")
    for path in (finished / "results/tiny").rglob("*"):
        if path.suffix in numbers and "mlflow-artifacts" not in path.parts:
            assert path.with_name(f".{path.name}.sha256").exists(), path


def test_no_rule_uses_a_shell(finished):
    """Snakemake's records of all files have no shell command."""
    records = [path for path in (finished / ".snakemake/metadata").rglob("*") if path.is_file()]
    made = [json.loads(path.read_text()) for path in records]
    assert {"prepare_dataset", "train_ics", "evaluate", "aggregate"} <= {one["rule"] for one in made}
    assert not any(one["shellcmd"] for one in made)


def test_a_second_call_finds_nothing_to_do(finished):
    study = finished / "results/tiny"
    before = {
        path: path.stat().st_mtime_ns for path in [*study.rglob("*.safetensors"), study / "report.html"]
    }
    again = run(finished)
    assert again.returncode == 0
    assert "✓" not in again.stdout, "no job may run"
    assert again.stdout.startswith("Nothing to be done")
    assert "ztw-nostop" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def planned(folder: Path, config: Path = TINY, *target: str) -> set[str]:
    """The rules whose jobs a dry run would start."""
    done = run(folder, config, "--", "--dry-run", *target)
    assert done.returncode == 0, shown(done)
    return set(re.findall(r"^(?:local)?rule (\w+):$", done.stdout, re.M))


def with_other_times(folder: Path) -> None:
    """Make every file older than the code, as after a clone, and some outputs older than their inputs."""
    for number, path in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        then = 10**18 - number * 10**9
        os.utime(path, ns=(then, then))


def test_file_times_and_other_profiles_do_not_decide_what_runs(finished, tmp_path, monkeypatch):
    """Checksums decide what runs again. The trigger mtime alone would run other jobs."""
    folder = copy_of(finished, tmp_path)
    with_other_times(folder)
    for place in ("mine", "profiles/default", "default"):
        (folder / place).mkdir(parents=True)
        (folder / place / "config.yaml").write_text("rerun-triggers: [mtime]\nexecutor: no-such\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(folder / "mine"))
    assert planned(folder) == set()
    (folder / "mine/config.yaml").write_text("rerun-triggers: [mtime]\ncores: 1\n")
    changed = changed_config(folder, evaluation={"budgets": [0.5]}, seeds=[0, 1, 2])
    asked = [*command(changed)[:-2], "--profile", "mine", "--", "--dry-run"]
    given = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=100)
    assert re.search(r"^rule evaluate:\n(?:    .*\n)*    wildcards: .*seed=0", given.stdout, re.M), (
        "a given profile's triggers neither"
    )
    assert re.search(r"^rule train_ics:\n(?:    .*\n)*    wildcards: .*seed=2", given.stdout, re.M)
    assert not re.search(r"^rule train_ics:\n(?:    .*\n)*    wildcards: .*seed=0", given.stdout, re.M)


def test_results_without_records_are_refused(finished, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copytree(finished / "results", tmp_path / "copy/results", copy_function=shutil.copyfile)
    done = run(tmp_path / "copy")
    assert done.returncode == 1
    (line,) = errors(shown(done))
    assert "results/tiny: .snakemake/ has no record" in line
    assert "copy .snakemake/ together with the results" in line
    assert "-- --touch --forceall" in line
    assert run(tmp_path / "copy", TINY, "--", "--touch", "--forceall").returncode == 0
    backbone = {"epochs": 1, "batch_size": 64, "lr": 0.05, "schedule": "one_cycle"}
    would = planned(tmp_path / "copy", changed_config(tmp_path / "copy", backbone=backbone))
    assert "train_backbone" in would
    assert "prepare_dataset" not in would


def test_some_results_without_records_are_refused(finished, tmp_path):
    """As after a copy of a seed from another machine: its settings are unknown."""
    folder = copy_of(finished, tmp_path)
    for record in (folder / ".snakemake/metadata").iterdir():
        if "/seed1/backbone." in base64.urlsafe_b64decode(record.name).decode():
            record.unlink()
    done = run(folder)
    (line,) = errors(shown(done))
    assert "how 2 of " in line
    assert "(results/tiny/digits/resnet14/seed1/backbone.safetensors, ...)" in line


def test_without_tracking_the_tables_come_from_the_files(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    shutil.rmtree(folder / "results/tiny/tables")
    for path in [*folder.rglob("runs.json"), folder / "results/tiny/mlflow.db"]:
        path.unlink()
    done = run(folder, changed_config(folder, tracking="none"), "--", "aggregate")
    assert done.returncode == 0, done.stdout
    assert tables(folder) == tables(finished)
    assert not (folder / "results/tiny/mlflow.db").exists()


def test_a_missing_run_is_named_and_its_cell_logged_again(finished, tmp_path):
    folder, runs = copy_of(finished, tmp_path), "results/tiny/digits/resnet8/seed0/runs.json"
    run_id = read_json(folder / runs)["runs"]["method"]["ztw"]
    MlflowClient(f"sqlite:///{folder}/results/tiny/mlflow.db").delete_run(run_id)
    shutil.rmtree(folder / "results/tiny/tables")
    done = run(folder)
    assert done.returncode == 0, done.stdout
    assert "digits/resnet8/seed0/metrics/ztw.json: no run in MLflow has this result" in done.stdout
    assert tables(folder) == tables(finished)
    done = run(folder)
    assert "track_cell" in jobs_done(done.stdout)
    assert read_json(folder / runs)["runs"]["method"]["ztw"] != run_id
    assert tables(folder) == tables(finished)


def test_a_broken_checkpoint_is_named(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    cell = folder / "results/tiny/digits/resnet8/seed0"
    weights = cell / "backbone.safetensors"
    content, times = weights.read_bytes()[:-50], weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    target = cell.relative_to(folder) / "predictions/independent/test.safetensors"
    failed = run(folder, TINY, "--", "--forcerun", "predict", "--", str(target))
    assert failed.returncode != 0
    assert "seed0/backbone.safetensors: altered since it was written" in failed.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seeds: [", "not YAML"),
        ("just text", "must be a mapping of keys"),
        (TINY.read_text().replace("seeds: [0, 1]", "seeds: []"), "seeds: is empty"),
        (TINY.read_text().replace("lr: 0.1", "lr: 1e-1"), "YAML reads it as text"),
    ],
)
def test_a_wrong_config_ends_in_one_line_at_once(tmp_path, content, message):
    (tmp_path / "wrong.yaml").write_text(content)
    failed = run(tmp_path, tmp_path / "wrong.yaml")
    assert failed.returncode == 1
    assert message in failed.stdout
    assert len(failed.stdout.strip().splitlines()) == 1
    assert failed.stderr == ""
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("cores", ["0", "-1", "two", ""])
def test_without_a_core_nothing_is_started(tmp_path, cores):
    failed = subprocess.run(
        [*command(), "--cores", cores], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert failed.returncode == 2
    assert failed.stderr.endswith(f"argument --cores: {cores!r} must be a whole number >= 1\n")
    assert not (tmp_path / "results").exists()


def test_a_missing_config_is_named(tmp_path):
    failed = run(tmp_path, tmp_path / "none.yaml")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert "none.yaml': No such file or directory" in failed.stdout


@pytest.mark.parametrize("package", ["snakemake", "psutil", "mlflow", "yaml"])
def test_a_package_that_only_the_workflow_needs_is_named(tmp_path, package):
    """As if ztw was installed without its extra `workflow`."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    failed = subprocess.run(
        command(),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (failed.returncode, failed.stderr) == (1, "")
    assert failed.stdout == (
        f"error: the workflow: the package {package} is not installed; pip install 'ztw[workflow]'\n"
    )


def test_a_plugin_runs_in_the_workflow(finished, tmp_path):
    """Methods with parts of a plugin join a finished study. After an edit, the jobs that can depend on it run again."""
    folder = copy_of(finished, tmp_path)
    plugin = folder / "my_parts.py"
    shutil.copyfile(ROOT / "examples/my_parts.py", plugin)
    methods = {
        "sdn-margin": {"ics": "independent", "rule": "margin"},
        "median-margin": {"ics": "independent", "ensemble": "median", "rule": "margin"},
    }
    config = changed_config(
        folder, plugins=[plugin.name], methods=methods, seeds=[0], ensembles={"sets": {}}, tracking="none"
    )
    done = run(folder, config, "--", "aggregate")  # no figures, no report
    assert done.returncode == 0, done.stdout + done.stderr
    study = folder / "results/tiny"
    table = (study / "tables/accuracy_at_budget.csv").read_text()
    for method in methods:
        assert f",{method}," in table
        assert method in done.stdout
    digests = {plugin.name: sha256(plugin)}
    cell = study / "digits/resnet8/seed0"
    for file in ("ensembles/independent/median", "metrics/sdn-margin", "latency"):
        assert read_json(cell / f"{file}.json")["versions"]["plugins"] == digests, file
    assert "plugins" not in read_json(cell / "backbone.json")["versions"], (
        "neither backbone nor head is of a plugin"
    )
    plugin.write_text(plugin.read_text() + "# edited\n")
    again = run(folder, config, "--", "--dry-run")
    assert again.returncode == 0, again.stdout
    would = set(re.findall(r"^\s*(?:local)?rule (\w+):$", again.stdout, re.M))
    assert {"fit_ensembles", "evaluate", "measure_latency", "aggregate"} <= would
    assert would.isdisjoint({"prepare_dataset", "train_backbone", "train_ics", "predict"})
    plugin.write_text(plugin.read_text().replace("largest[:, 0]", "logits.mean()"))
    broken = run(folder, config)
    assert broken.returncode == 1
    assert broken.stdout == "error: rule 'margin': scores depend on the other samples of the batch\n"


def test_every_network_in_int8_is_a_job(tmp_path):
    """An IC set in the cell, static networks in cells of their own, each once for all methods."""
    methods = {
        "sdn-int8": {"ics": "independent", "int8": True},
        "pabee-int8": {"ics": "independent", "rule": "patience", "int8": True},
        "resnet14": {"static": "resnet14"},
        "resnet8": {"static": "resnet8"},
        "resnet8-int8": {"static": "resnet8", "int8": True},
        "both-int8": {"cascade_of": ["resnet8", "resnet14"], "ensemble": "few", "int8": True},
    }
    config = changed_config(tmp_path, methods=methods, latency={"batch_sizes": []}, seeds=[0])
    done = run(tmp_path, config, "--", "--dry-run")
    assert done.returncode == 0, shown(done)
    jobs = re.findall(r"^rule predict_int8:\n(?:    .*\n)*?    wildcards: (.*)", done.stdout, re.M)
    assert sorted(jobs) == [
        f"dataset=digits, arch={arch}, seed=0, network={network}"
        for arch, network in (
            ("resnet14", "backbone.alone"),
            ("resnet8", "backbone.alone"),
            ("resnet8", "independent"),
        )
    ]


@pytest.mark.parametrize("config", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.name)
def test_dry_run_of_every_shipped_config(config, tmp_path):
    """Every rule with `share_of_cores` also has an entry in the Slurm profile's set-threads."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--configfile", str(config), "--cores", "999", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    sharing = set(re.findall(r"^rule (\w+):\n(?:    .*\n)*    threads: ", done.stdout, re.M))
    assert {"train_backbone", "predict"} <= sharing <= profile["set-threads"].keys()


# Runs a script where neither package can be imported
WITHOUT = """
import runpy, sys
sys.modules["snakemake"] = sys.modules["mlflow"] = None
sys.path[0] = sys.argv[1]
del sys.argv[0]
runpy.run_path(sys.argv[0] + "/without_snakemake.py", run_name="__main__")
"""
# What the script does not make: MLflow's runs, and what is measured or drawn of cells
LEFT_OUT = re.compile(r".*(/latency.*|\.?runs\.json.*|accuracy_cost\.(png|pdf))")


def test_without_snakemake_the_results_are_the_same(finished, tmp_path, monkeypatch, publishing):
    """The script computes the second seed again, from the first seed and the data of a run by Snakemake."""
    study = copy_of(finished, tmp_path) / "results/tiny"
    monkeypatch.chdir(study.parents[1])
    for cell in study.glob("digits/*/seed1"):
        shutil.rmtree(cell)
    shutil.rmtree(study / "tables")
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}
    script = [sys.executable, "-c", WITHOUT, f"{ROOT}/workflow", f"{TINY}", "--seeds", "1", "--threads", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, shown(done)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what exists is not computed again"
    cells = [path.relative_to(finished) for path in finished.glob("results/tiny/digits/*/seed1/**/*")]
    assert [path for path in cells if not path.exists() and not LEFT_OUT.fullmatch(str(path))] == []
    for path in cells:
        if path.match("metrics/*.json") or path.match("curves/*.parquet"):
            assert path.read_bytes() == (finished / path).read_bytes(), path
    for table in (study / "tables").glob("[!.]*"):
        assert table.read_bytes() == (finished / "results/tiny/tables" / table.name).read_bytes(), table
    target = tmp_path / "reference/tiny"
    publishing.publish(TINY, target, "one", ["independent"])
    assert set(seeds_of(target)) == {2}
    trained = read_json(target / "digits/resnet8/seed1/provenance.json")["trainings"]
    assert trained["digits/resnet8/seed1/ics/cascade.json"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({}, [1, 5], "--seeds 5: is not in .*tiny.yaml, which has 0, 1"),
        (
            {
                "methods": {"sdn": {"ics": "independent", "int8": True}},
                "latency": {"batch_sizes": []},
            },
            [],
            "has logits or methods in int8, which only make reproduce computes",
        ),
    ],
)
def test_what_is_not_run_without_snakemake(changes, seeds, message, tmp_path, publishing):
    from without_snakemake import study_of

    with pytest.raises(ztw.ZtwError, match=message):
        study_of(str(changed_config(tmp_path, **changes)), seeds)
