"""The real DAG on the tiny study: run, repeated, killed and resumed, without a tracker, with broken ones."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from rebuilt import assert_rebuilt
from tiny_study import ROOT, TINY, changed_config, command, copy_of, errors, run, shown, tables

import ztw
from ztw.data.record import read_study_record
from ztw.data.splits import cell_splits
from ztw.device import device_name
from ztw.exits.logits import read_predictions
from ztw.exits.sweep import simulate_exits
from ztw.files import read_json, sha256, write_json
from ztw.reporting.devices import read_mixed
from ztw.study.settings import DataSettings

pytestmark = pytest.mark.usefixtures("data_root")


def test_it_leaves_what_the_readme_promises(finished):
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
        study / "tables/comparison.csv",
        study / "tables/devices.csv",
        study / "figures/digits-resnet8-accuracy_time.png",
        study / "mlflow.db",
        study / "report.html",
        study / "figures/digits-resnet8-accuracy_cost.png",
        study / "figures/digits-resnet8-exit_shares.pdf",
    ):
        assert path.stat().st_size > 0, path
    assert read_mixed(study / "tables/devices.csv") == {}
    where = {"device", "precision", "threads", "host"}
    for file in ("backbone", "ics/cascade", "ics/depth_weighted", "predictions/cascade/test"):
        assert where <= read_json(cell / f"{file}.json").keys(), file
    assert all(where <= row.keys() for row in read_json(cell / "latency.json")["rows"])
    parts = [part["part"] for part in read_json(cell / "metrics/ztw.json")["computed"]]
    assert parts == ["backbone", "ics cascade_detached", "predictions cascade_detached"]
    parts = [part["part"] for part in read_json(cell / "metrics/resnet14.json")["computed"]]
    assert parts == ["backbone resnet14", "predictions resnet14"], "not the cell's own backbone"


def test_the_report_s_captions_are_rendered(finished):
    report = (finished / "results/tiny/report.html").read_text()
    assert "thresholds are chosen on the validation split" in report
    assert "Data set digits, architecture resnet8, seeds 0" in report
    assert re.findall(r".{20}``[a-z].{20}", report) == [], "markup that reStructuredText did not take as such"


def test_every_method_s_network_can_be_loaded(finished, tmp_path):
    cell = finished / "results/tiny/digits/resnet8/seed0"
    methods = yaml.safe_load(TINY.read_text())["methods"]
    assert {path.name for path in (cell / "networks").iterdir()} == methods.keys()
    for name, method in methods.items():
        network, rule = ztw.load(cell / "networks" / name, budget="max")
        place = cell / f"predictions/{method.get('ics')}"
        if "static" in method:
            place = cell.parents[1] / method["static"] / "seed0/backbone_predictions"
        logits, labels = read_predictions(place / "validation.safetensors")
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
    """The cell that is timed: its runs say what time each method takes."""
    store = MlflowClient(f"sqlite:///{finished}/results/tiny/mlflow.db")
    for seed, first in ((0, True), (1, False)):
        runs = read_json(finished / f"results/tiny/digits/resnet8/seed{seed}/runs.json")["runs"]
        (of_cell,) = (store.get_run(cell).data.metrics for cell in runs["cell"].values())
        for method, own in runs["method"].items():
            assert ("model" in [found.path for found in store.list_artifacts(own)]) == first
            headlines = store.get_run(own).data.metrics
            assert headlines["accuracy_at_max"] == of_cell[f"{method}/accuracy_at_max"]
            assert headlines["accuracy_at_max"] == headlines["held-out/accuracy_at_max"]
            assert (
                ("relative_time_at_max" in headlines)
                == (f"{method}/relative_time_at_max" in of_cell)
                == first
            )


def test_a_published_study_is_made_again_from_its_files(finished, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from publish import publish, rebuild

    monkeypatch.chdir(finished)
    target, study = tmp_path / "reference/tiny", Path("results/tiny")
    publish(TINY, target, "a test", "this one", ["independent"])
    rebuild(target, tmp_path / "again")
    assert_rebuilt(target, tmp_path / "again")
    for name in ("accuracy_at_budget", "differences", "per_exit", "allowed_loss", "comparison", "latency"):
        assert (tmp_path / f"again/tables/{name}.csv").read_bytes() == (
            study / f"tables/{name}.csv"
        ).read_bytes(), name
    facts = read_json(target / "provenance.json")
    (of_run,) = facts["runs"]
    assert of_run["seconds"]["all"] > 0
    trained = of_run["trainings"]["digits/resnet8/seed1/ics/cascade.json"]
    assert (trained["device"], trained["precision"]) == (device_name(torch.device("cpu")), "fp32")
    assert trained["versions"]["torch"] == torch.__version__
    assert "digits/resnet8/seed0/backbone.json" in of_run["trainings"]
    logits = study / "digits/resnet8/seed1/predictions/cascade/test.safetensors"
    assert facts["logits_sha256"]["digits/resnet8/seed1/predictions/cascade/test.safetensors"] == sha256(
        logits
    )
    found = ztw.load_predictions("tiny/digits/resnet8/seed0/independent", tmp_path / "reference")
    expected = read_predictions(study / "digits/resnet8/seed0/predictions/independent/test.safetensors")
    torch.testing.assert_close(found.test[0], expected[0], atol=1e-6, rtol=2**-10)
    network, _ = ztw.load(study / "digits/resnet8/seed0/networks/sdn")
    assert torch.equal(found.cost, ztw.macs(network))
    with pytest.raises(ztw.ZtwError, match="--logits other: no method of the study has that IC set"):
        publish(TINY, target, "", "", ["other"])


def seeds_of(published: Path) -> pd.Series:
    """Method -> of how many seeds its accuracy at any cost is."""
    rows = pd.read_csv(published / "tables/accuracy_at_budget.csv")
    return rows[rows["budget"].eq("max") & rows["protocol"].eq("held-out")].set_index("method")["n"]


def timed(published: Path) -> set[str]:
    return set(pd.read_csv(published / "tables/latency.csv")["method"])


def test_seeds_and_methods_are_published_one_after_another(finished, tmp_path, monkeypatch):
    """In the end as if at once; what is not there yet has no row."""
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from publish import publish, rebuild

    monkeypatch.chdir(copy_of(finished, tmp_path))
    results, whole, target = Path("results/tiny"), tmp_path / "whole/tiny", tmp_path / "parts/tiny"
    publish(TINY, whole, "", "", [])
    away = tmp_path / "away"
    for name in ("digits/resnet8/seed1/metrics", "digits/resnet8/seed0/metrics/pabee.json"):
        (away / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).rename(away / name)
    publish(TINY, target, "in parts", "one", [], add=True)
    rebuild(target, tmp_path / "again")
    assert_rebuilt(target, tmp_path / "again")
    seeds = seeds_of(target)
    assert seeds["sdn"] == 1
    assert "pabee" not in seeds
    assert timed(target) == timed(whole) - {"pabee"}
    (results / "digits/resnet8/seed0/metrics").rename(away / "first")
    (away / "digits/resnet8/seed1/metrics").rename(results / "digits/resnet8/seed1/metrics")
    publish(TINY, target, "", "another", [], add=True)
    seeds = seeds_of(target)
    assert seeds["pabee"] == 1
    assert seeds["sdn"] == 2
    given = {run["machine"]: list(run["methods"]) for run in read_json(target / "provenance.json")["runs"]}
    assert given == {"one": ["digits/resnet8/seed0"], "another": ["digits/resnet8/seed1"]}
    assert timed(target) == timed(whole) - {"pabee"}
    of_first = read_json(results / "digits/resnet8/seed0/latency.json")
    write_json(results / "digits/resnet8/seed1/latency.json", {**of_first, "seed": 1})
    publish(TINY, target, "", "another", [], add=True)
    assert timed(target) == timed(whole), "the seed of which more was timed"
    (away / "first").rename(results / "digits/resnet8/seed0/metrics")
    (away / "digits/resnet8/seed0/metrics/pabee.json").rename(
        results / "digits/resnet8/seed0/metrics/pabee.json"
    )
    publish(TINY, target, "", "", [], add=True)
    assert_rebuilt(whole, target)
    facts = read_json(target / "provenance.json")
    assert [run["machine"] for run in facts["runs"]] == [""], "of which everything is"
    assert facts["what"] == "in parts"
    assert facts["logits_sha256"] == read_json(whole / "provenance.json")["logits_sha256"]


def test_what_cannot_be_added_to_a_published_study(finished, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from publish import publish

    monkeypatch.chdir(copy_of(finished, tmp_path))
    target, of_cell = tmp_path / "reference/tiny", Path("results/tiny/digits/resnet8/seed0")
    publish(TINY, target, "", "", [])
    given = yaml.safe_load(TINY.read_text())

    def refused(config: Path, message: str, add: bool = True) -> None:
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        with pytest.raises(ztw.ZtwError, match=message):
            publish(config, target, "", "", [], add)
        assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    refused(
        changed_config(tmp_path, seeds=[0]),
        "reference/tiny: has .* of digits/resnet8/seed1, which the study does not name; it would be lost",
    )
    refused(
        changed_config(tmp_path, backbone={**given["backbone"], "lr": 0.05}),
        "backbone.json: computed with lr 0.1, the study has 0.05; run make reproduce first",
    )
    (of_cell / "metrics/pabee.json").rename(tmp_path / "pabee.json")
    refused(
        TINY, "results/tiny: pabee of digits/resnet8/seed0 is not finished; run make reproduce", add=False
    )
    refused(
        changed_config(tmp_path, evaluation={**given["evaluation"], "budgets": [0.9, "max"]}),
        "pabee of digits/resnet8/seed0 was published with another evaluation; compute it again, or",
    )
    facts = read_json(target / "provenance.json")
    facts["logits_sha256"]["digits/resnet8/seed0/predictions/independent/test.safetensors"] = "0" * 64
    (target / "provenance.json").write_text(json.dumps(facts))
    refused(
        TINY, "digits/resnet8/seed0 was trained again, and pabee is of the first training; publish all its"
    )
    shutil.rmtree("results/tiny/digits")
    refused(TINY, "results/tiny: nothing of the study is finished; run make reproduce")


def test_every_file_of_numbers_is_sealed(finished):
    """What another job reads is checked against the SHA-256 beside it."""
    numbers = (".safetensors", ".parquet", ".json", ".csv")
    for path in (finished / "results/tiny").rglob("*"):
        if path.suffix in numbers and "mlflow-artifacts" not in path.parts:
            assert path.with_name(f".{path.name}.sha256").exists(), path


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


def planned(folder: Path, config: Path = TINY) -> set[str]:
    """The rules whose jobs a dry run would start."""
    done = run(folder, config, "--", "--dry-run")
    assert done.returncode == 0, shown(done)
    return set(re.findall(r"^(?:local)?rule (\w+):$", done.stdout, re.M))


def test_profiles_that_a_run_was_not_given_change_nothing(finished, tmp_path, monkeypatch):
    """With mtime alone as trigger a changed setting would run nothing, and the old table would be shown."""
    folder = copy_of(finished, tmp_path)
    for place in ("mine", "profiles/default", "default"):
        (folder / place).mkdir(parents=True)
        (folder / place / "config.yaml").write_text("rerun-triggers: [mtime]\nexecutor: no-such\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(folder / "mine"))
    changed = changed_config(folder, evaluation={"budgets": [0.5]})
    assert {"evaluate", "aggregate"} <= planned(folder, changed)
    (folder / "mine/config.yaml").write_text("rerun-triggers: [mtime]\ncores: 1\n")
    asked = [*command(changed)[:-2], "--profile", "mine", "--", "--dry-run"]
    given = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=100)
    assert re.search("^rule evaluate:$", given.stdout, re.M), "a given profile's triggers neither"


def test_a_copy_with_new_times_is_known_by_its_content(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copyfile)
    assert planned(tmp_path / "copy") == set()
    assert "train_ics" in planned(tmp_path / "copy", changed_config(tmp_path / "copy", seeds=[0, 1, 2]))


def test_results_without_records_of_how_they_were_made_are_not_judged(finished, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copytree(finished / "results", tmp_path / "copy/results", copy_function=shutil.copyfile)
    done = run(tmp_path / "copy")
    assert done.returncode == 1
    (line,) = errors(shown(done))
    assert "results/tiny: holds results, but .snakemake/ in this folder has no record" in line
    assert "copy .snakemake along with results" in line
    assert "-- --touch --forceall" in line
    assert run(tmp_path / "copy", TINY, "--", "--touch", "--forceall").returncode == 0
    assert planned(tmp_path / "copy") == set()
    backbone = {"epochs": 1, "batch_size": 64, "lr": 0.05, "schedule": "one_cycle"}
    assert "train_backbone" in planned(
        tmp_path / "copy", changed_config(tmp_path / "copy", backbone=backbone)
    )


def test_results_of_which_some_have_no_record_are_not_judged(finished, tmp_path):
    """A seed that was copied here from another machine: it may be of other settings."""
    folder = copy_of(finished, tmp_path)
    for record in (folder / ".snakemake/metadata").iterdir():
        if "/seed1/backbone." in base64.urlsafe_b64decode(record.name).decode():
            record.unlink()
    done = run(folder)
    (line,) = errors(shown(done))
    assert "how 2 of them (results/tiny/digits/resnet14/seed1/backbone.safetensors, ...) were made" in line


def test_a_clone_s_new_scripts_run_nothing_again(finished, tmp_path):
    """Git gives files the time of the checkout: older results are of the same code all the same."""
    folder = copy_of(finished, tmp_path)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        long_ago = path.stat().st_mtime_ns - 10**18
        os.utime(path, ns=(long_ago, long_ago))
    assert planned(folder) == set()


def test_without_tracking_the_tables_come_from_the_files(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    shutil.rmtree(folder / "results/tiny/tables")
    for path in [*folder.rglob("runs.json"), folder / "results/tiny/mlflow.db"]:
        path.unlink()
    done = run(folder, changed_config(folder, tracking="none"))
    assert done.returncode == 0, done.stdout
    assert tables(folder) == tables(finished)
    assert not (folder / "results/tiny/mlflow.db").exists()


def test_a_missing_run_is_named(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    run_id = read_json(folder / "results/tiny/digits/resnet8/seed0/runs.json")["runs"]["method"]["ztw"]
    MlflowClient(f"sqlite:///{folder}/results/tiny/mlflow.db").delete_run(run_id)
    shutil.rmtree(folder / "results/tiny/tables")
    failed = run(folder)
    assert failed.returncode != 0
    assert f"run {run_id} was deleted" in failed.stdout


def test_a_broken_checkpoint_is_named(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    cell = folder / "results/tiny/digits/resnet8/seed0"
    weights = cell / "backbone.safetensors"
    content, times = weights.read_bytes()[:-50], weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    failed = run(folder, TINY, "--", "--forcerun", "predict")
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


def test_a_missing_config_is_told(tmp_path):
    failed = run(tmp_path, tmp_path / "none.yaml")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert "none.yaml': No such file or directory" in failed.stdout


@pytest.mark.parametrize("package", ["snakemake", "psutil", "mlflow"])
def test_a_package_that_only_the_workflow_needs_is_named(tmp_path, package):
    """Where ztw was installed without its extra."""
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
        f"error: the workflow needs {package}, which is missing: pip install 'ztw[workflow]'\n"
    )


def test_parts_of_ones_own_with_no_change_in_ztw(tmp_path):
    """The example runs; an edit of its file runs again what can depend on it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    config, plugin = Path("examples/my_parts.yaml"), tmp_path / "examples/my_parts.py"
    text = (tmp_path / config).read_text().replace("images: 8}", "images: 8, runtimes: [pytorch]}")
    (tmp_path / config).write_text(text + "tracking: none\n")  # what takes long has tests of its own
    done = run(tmp_path, config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ics independent: a sample that leaves at exits 2 to 3 saves nothing") == 1
    study = tmp_path / "results/my_parts"
    table = (study / "tables/accuracy_at_budget.csv").read_text()
    for method in ("sdn-margin", "median-margin"):
        assert f",{method}," in table
        assert method in done.stdout
    digests = {str(config.with_suffix(".py")): sha256(plugin)}
    cell = study / "digits/resnet8/seed0"
    for file in ("ensembles/independent/median", "metrics/sdn-margin", "latency"):
        assert read_json(cell / f"{file}.json")["versions"]["plugins"] == digests, file
    assert "plugins" not in read_json(cell / "backbone.json")["versions"], (
        "neither backbone nor head is of a plugin"
    )
    plugin.write_text(plugin.read_text() + "# edited\n")
    again = run(tmp_path, config, "--", "--dry-run")
    assert again.returncode == 0, again.stdout
    would = set(re.findall(r"^\s*(?:local)?rule (\w+):$", again.stdout, re.M))
    assert {"fit_ensembles", "evaluate", "measure_latency", "aggregate"} <= would
    assert would.isdisjoint({"prepare_dataset", "train_backbone", "train_ics", "predict"})
    plugin.write_text(plugin.read_text().replace("largest[:, 0]", "logits.mean()"))
    broken = run(tmp_path, config)
    assert broken.returncode == 1
    assert broken.stdout == "error: rule 'margin': score depends on which samples are in the batch\n"


@pytest.mark.parametrize("config", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.name)
def test_dry_run_and_lint_of_every_shipped_config(config, tmp_path):
    base = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    base += ["--configfile", str(config), "--cores", "1"]
    for extra in (["--dry-run"], ["--lint"]):
        done = subprocess.run([*base, *extra], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
