"""A finished study is known again without Snakemake, and only while nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ztw.files import write_json
from ztw.study.config import check_study, read_config

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/config/tiny.yaml"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """What a new call would find: a function that looks again."""
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from finished import Finished

    monkeypatch.chdir(tmp_path)
    folder = Path("results/tiny")
    (folder / "tables").mkdir(parents=True)
    (folder / "tables/accuracy_at_budget.csv").write_text("1")
    config = Path("tiny.yaml")
    config.write_text(TINY.read_text())
    return lambda: Finished(str(config), check_study(read_config(config)), folder)


def test_nothing_is_finished_before_it_is_noted(call):
    assert not call()
    call().note()
    assert call()


def test_logs_may_come_and_go(call):
    call().note()
    Path("results/tiny/logs").mkdir()
    Path("results/tiny/logs/snakemake.log").write_text("asked")
    assert call()


def test_cells_that_are_not_delivered_are_found(call):
    from finished import undelivered

    for seed, facts in enumerate(({"runs": {}}, {"undelivered": "it is away"})):
        write_json(Path(f"results/tiny/digits/torchvision/resnet18/seed{seed}/runs.json"), facts)
    found = Path("results/tiny/digits/torchvision/resnet18/seed1/runs.json")
    assert undelivered(Path("results/tiny")) == {found: "it is away"}


@pytest.mark.parametrize("change", ["config", "altered", "deleted", "added"])
def test_any_change_is_snakemakes_to_judge(call, change):
    call().note()
    table = Path("results/tiny/tables/accuracy_at_budget.csv")
    if change == "config":
        Path("tiny.yaml").write_text(TINY.read_text() + "# a comment\n")
    elif change == "altered":
        table.write_text("2 ")
    elif change == "deleted":
        table.unlink()
    else:
        (table.parent / "more.csv").write_text("")
    assert not call()


def test_an_edited_plugin_is_snakemakes_to_judge(call):
    plugin = Path("own.py")
    plugin.write_text((ROOT / "examples/my_parts.py").read_text())
    Path("tiny.yaml").write_text(f"plugins: [own.py]\n{TINY.read_text()}")
    call().note()
    assert call()
    plugin.write_text(plugin.read_text() + "# a comment\n")
    assert not call()


def test_an_edited_helper_of_a_plugin_is_snakemakes_to_judge(call):
    Path("helper.py").write_text("")
    Path("own.py").write_text(f"import helper\n{(ROOT / 'examples/my_parts.py').read_text()}")
    Path("tiny.yaml").write_text(f"plugins: [own.py]\n{TINY.read_text()}")
    call().note()
    assert call()
    Path("helper.py").write_text("# a comment\n")
    assert not call()


def test_code_that_is_edited_during_the_run_is_newer_than_the_results(call, monkeypatch, tmp_path):
    import finished

    code = tmp_path / "house/ztw/module.py"
    code.parent.mkdir(parents=True)
    code.write_text("1")
    (tmp_path / "house/environment.yml").write_text("")
    monkeypatch.setattr(finished, "ROOT", tmp_path / "house")
    at_work = call()
    code.write_text("22")
    at_work.note()
    assert not call()


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": ["imagenet"], "archs": ["torchvision/resnet50"]},
        {"datasets": ["mine"], "data": {"image_folders": {"mine": {"path": "mine", "size": 8}}}},
        {
            "data": {"validation_from": "test"},
            "backbone": {"source": "file", "path": "weights.pt", "epochs": 1},
        },
    ],
)
def test_a_users_own_files_are_looked_at_every_time(call, changes):
    study = {**yaml.safe_load(TINY.read_text()), **changes}
    study["archs"] = study["archs"] if "archs" in changes else ["resnet8"]
    Path("tiny.yaml").write_text(yaml.safe_dump(study))
    call().note()
    assert not call()
