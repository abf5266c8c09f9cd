"""Test that published tables and figures can be rebuilt from the published files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from rebuilt import assert_rebuilt

import ztw
from ztw.evaluation.published_logits import published
from ztw.files import read_json
from ztw.reporting.results import read_metrics
from ztw.study.config import check_study, read_config

CONFIG = Path(__file__).parents[1] / "config"
REFERENCE = Path(__file__).parents[1] / "results/reference"
STUDIES = sorted(path.parent for path in REFERENCE.glob("*/config.yaml"))


@pytest.fixture
def rebuild(monkeypatch):
    monkeypatch.syspath_prepend(str(REFERENCE.parents[1] / "workflow"))
    from publish import rebuild

    return rebuild


def cells_of(study: Path, target: Path) -> Path:
    """Copy a published study without tables and figures."""
    target /= study.name
    shutil.copytree(study, target, ignore=shutil.ignore_patterns("tables", "figures", "predictions"))
    return target


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_tables_and_figures_of_a_reference_study(study, tmp_path, rebuild):
    again = cells_of(study, tmp_path)
    rebuild(again)
    assert_rebuilt(study, again)


def test_a_published_file_is_small_and_names_no_machine():
    for path in REFERENCE.glob("*/**/seed*/**/*"):
        if path.is_file() and path.parent.name != "predictions":
            assert path.stat().st_size < 2**20, path
    for path in REFERENCE.glob("*/**/seed*/metrics/*.json"):
        hosts = {part["host"] for part in read_json(path)["computed"]}
        assert all(re.fullmatch("host [0-9a-f]{1,6}", host) for host in hosts), path
    for path in REFERENCE.glob("*/**/seed*/latency.json"):
        assert not any("host" in row for row in read_json(path)["rows"]), path


@pytest.mark.parametrize(("content", "message"), [(None, ""), (b"garbage", "")])
def test_a_study_without_readable_curves_gives_one_line(content, message, tmp_path, rebuild):
    study = cells_of(REFERENCE / "tiny-imagenet-resnet56", tmp_path)
    curves = study / "tiny_imagenet/resnet56/seed0/curves/ztw.parquet"
    curves.unlink()
    if content:
        curves.write_bytes(content)
    before = sorted(study.rglob("*"))
    with pytest.raises(ztw.ZtwError, match=rf"^{curves}: cannot be read \(.*{message}"):
        rebuild(study)
    assert sorted(study.rglob("*")) == before


# Methods whose training code was corrected after they were published; remove a method after a new training
BY_OLDER_CODE = {"cifar10-jpeg-resnet20-systems": {"sdn-original"}}


@pytest.mark.parametrize(
    "study", [path for path in STUDIES if path.name != "quick"], ids=lambda path: path.name
)
def test_results_of_older_settings_are_marked(study):
    """Methods with other settings than the study's current file, or by older code, are marked in both READMEs."""
    then, now = (
        check_study(read_config(path))
        for path in (study / "config.yaml", CONFIG / f"reference/{study.name}.yaml")
    )
    changed = {
        name
        for name, own in then.methods.items()
        if own.ics and then.exit_sets[own.ics] != now.exit_sets[now.methods[name].ics]
    } | BY_OLDER_CODE.get(study.name, set())
    what, text = ((folder / "README.md").read_text() for folder in (study, REFERENCE))
    (marks,) = re.findall(rf"\*\*Before a correction\*\* \({study.name}\): (.*?)\n\n", text, re.S) or ("",)
    assert set(re.findall(r"before a correction: (.*?)\.", what)) == ({", ".join(sorted(changed))} - {""})
    assert {name for name in then.methods if f"`{name}`" in marks} == changed


@pytest.mark.parametrize("name", published())
def test_published_predictions_have_the_accuracy_of_their_study(name):
    found = ztw.load_predictions(name)
    logits, labels = found.test
    whole = float((logits[-1].argmax(-1) == labels).double().mean())
    assert whole == pytest.approx(_of_last_exit(name), abs=5e-4)


def _of_last_exit(name: str) -> float:
    """Return the test accuracy of the last exit of an IC set or a static row, from the study's metrics."""
    study, dataset, *arch, seed, of = name.split("/")
    methods = check_study(read_config(REFERENCE / study / "config.yaml")).methods
    metrics = read_metrics(REFERENCE / study / "tables/metrics.csv")
    (method, *_) = [
        name
        for name, own in methods.items()
        if not own.ensemble and (own.ics == of or (own.static and name == of))
    ]
    own = metrics[
        metrics["method"].eq(method)
        & metrics["dataset"].eq(dataset)
        & metrics["arch"].eq("/".join(arch))
        & metrics["seed"].eq(int(seed.removeprefix("seed")))
        & metrics["metric"].eq("accuracy")
        & metrics["protocol"].eq("")
    ]
    return float(own.sort_values("exit")["value"].iloc[-1])
