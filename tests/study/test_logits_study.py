"""A study from logits: its names are any names, and keys that need networks are refused in one line."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import ztw
from ztw.evaluation.prediction_formats import FORMATS
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell
from ztw.study.logits_checks import SUFFIXES
from ztw.study.manual import editor_schema

EXAMPLE = Path(__file__).parents[2] / "examples/numpy_logits.yaml"
SMALL = {"path": "logits/small-{dataset}-{arch}-{seed}.npz", "training": "joint"}
STUDY: dict[str, Any] = {
    "datasets": ["news", "data.v2"],
    "archs": ["mine", "lab/theirs"],
    "seeds": [0, 1],
    "logits": {
        "sets": {
            "plain": {"path": "logits/{dataset}-{arch}-{seed}.parquet", "training": "separate"},
            "chained": {
                "path": "l/{dataset}/{arch}/{seed}.npz",
                "training": "separate",
                "connection": "cascade",
            },
            "together": {"path": "t/{dataset}/{arch}/{seed}.safetensors", "training": "joint"},
            "small": SMALL,
        }
    },
    "methods": {
        "sdn": {"ics": "plain"},
        "ztw": {"ics": "plain", "ensemble": "geometric"},
        "cascade": {"ics": "chained"},
        "pabee": {"ics": "together", "rule": "patience"},
        "small": {"static": "small"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    study = copy.deepcopy(STUDY)
    *parents, key = path.split(".")
    place = study
    for parent in parents:
        place = place[parent]
    place[key] = value
    return study


def test_its_cells_have_any_names_and_files_of_their_own():
    study = check_study(STUDY)
    assert list(study.cells) == [(d, a) for d in ("news", "data.v2") for a in ("mine", "lab/theirs")]
    assert study.statics == {}, "a static network is a set"
    assert study.data.evaluated == ("validation", "test")
    assert study.families == {"sdn": "frozen", "ztw": "recycled", "cascade": "recycled", "pabee": "together"}
    assert study.logits is not None
    assert study.logits.sets["chained"].file(Cell("news", "lab/theirs", 1)) == Path("l/news/lab/theirs/1.npz")
    home = study.logits.sets["plain"].model_copy(update={"path": "~/{seed}.npz"})
    assert home.file(Cell("a", "b", 3)) == Path.home() / "3.npz"


def test_a_trained_study_has_no_sets_of_logits():
    study = check_study(read_config(Path(__file__).parents[1] / "config/tiny.yaml"))
    assert study.logits is None
    assert study.exit_sets == study.ics.sets


def test_the_suffixes_are_those_that_are_read():
    assert tuple(FORMATS) == SUFFIXES


WRONG: list[tuple[str, Any, str]] = [
    (
        "ics",
        {"epochs": 1, "sets": {"a": {"connection": "cascade"}}},
        "ics: a study has trained cells or cells from logits, not both; to compare them, give the logits of the"
        " trained ones under logits.sets",
    ),
    (
        "backbone",
        {"epochs": 1},
        "backbone: has no meaning with logits, because there are no networks; leave it out",
    ),
    ("data", {"validation_fraction": 0.2}, "data: has no meaning with logits"),
    ("overrides", [], "overrides: has no meaning with logits"),
    ("device", "cpu", "device: has no meaning with logits"),
    (
        "methods",
        {"m": {"ics": "plain", "int8": True}},
        "methods.m.int8: true: has no meaning in a study from logits; leave it out",
    ),
    ("tracked_models", "all", "tracked_models: has no meaning with logits"),
    (
        "latency",
        {"batch_sizes": [1]},
        "latency: there are no networks to time; logits.times takes times from",
    ),
    (
        "evaluation",
        {"protocols": ["published"]},
        "evaluation.protocols: published: counts the operations of networks",
    ),
    (
        "datasets",
        ["my data"],
        "datasets.0: 'my data': must be letters, digits and '_', after the first character",
    ),
    ("datasets", ["a/b"], "datasets.0: 'a/b': must be letters"),
    ("archs", ["mine", "../x"], "archs.1: '../x': must be letters"),
    ("archs", ["mine", "{seed}"], "archs.1: '{seed}': must be letters"),
    (
        "archs",
        ["lab/a", "lab-a"],
        "archs: 'lab-a': news/lab/a and news/lab-a would have the same figures; rename one",
    ),
    ("logits.sets", {}, "logits.sets: is empty, must name at least one"),
    ("logits.sets.a b", SMALL, "logits.sets.a b: 'a b' must match"),
    ("logits.set", {}, "logits.set: unknown key; known: sets, times"),
    ("logits.times", 1, "logits.times: 1 is not of type true or false"),
    ("logits.sets.small", {"path": "x{seed}.npz"}, "logits.sets.small: the key 'training' is missing"),
    ("logits.sets.small.lr", 1, "logits.sets.small.lr: unknown key; known: path, training, connection"),
    (
        "logits.sets.small.training",
        "alone",
        "logits.sets.small.training: 'alone' is unknown; known: separate",
    ),
    (
        "logits.sets.small.path",
        "x.npz",
        "logits.sets.small.path: 'x.npz': is the same file for news/mine/seed0 and",
    ),
    ("logits.sets.small.path", "{dataset}-{arch}.npz", "and news/mine/seed1; add {seed}"),
    ("logits.sets.small.path", "{arch}-{seed}.npz", "and data.v2/mine/seed0; add {dataset}"),
    ("logits.sets.small.path", "{dataset}{arch}{seed}.h5", "must end in .safetensors, .npz, .parquet"),
    ("logits.sets.small.path", "{split}{seed}.npz", "only {dataset}, {arch} and {seed} may stand in braces"),
    ("logits.sets.small.path", "{seed:03}.npz", "only {dataset}, {arch} and {seed} may stand in braces"),
    (
        "logits.sets.small.path",
        "a\0{seed}.npz",
        r"logits.sets.small.path: 'a\x00{seed}.npz': must be printable",
    ),
    ("logits.sets.small.path", "~nobody-has-this-name/{seed}.npz", "logits.sets.small.path: '~nobody-has"),
    (
        "methods.sdn.ics",
        "plan",
        "methods.sdn.ics: 'plan' is not in logits.sets; listed: plain, chained, together, sm",
    ),
    (
        "methods.small.static",
        "resnet20",
        "methods.small.static: 'resnet20' is not in logits.sets; listed: plain",
    ),
    ("methods.small.rule", "entropy", "methods.small.rule: has no meaning with static"),
    ("methods.sdn.rule", "fast", "methods.sdn.rule: 'fast' is unknown; known: max_softmax"),
    ("tracking", "wandb", "tracking: 'wandb' is unknown"),
    ("logits", None, "config: the key 'ics' is missing (or 'logits', in a study from logits)"),
    (
        "methods.sdn",
        {"ics": "plain", "ensemble": "on_validation", "thresholds": "risk_controlled"},
        "methods.sdn.thresholds: risk_controlled: its ensemble is fitted on the validation images",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_keys_end_in_one_line(path, value, message):
    study = changed(path, value)
    study["ensembles"] = {"sets": {"on_validation": {"kind": "geometric", "fit_on": "validation"}}}
    with pytest.raises(ztw.ZtwError, match=re.escape(message)) as caught:
        check_study(study)
    assert "\n" not in str(caught.value)


def test_an_editor_takes_it_and_finds_mistakes():
    schema = Draft202012Validator(editor_schema())
    for study in (STUDY, read_config(EXAMPLE)):
        assert not list(schema.iter_errors(study))
        check_study(study)
    for path, value in (("logits.sets.small.training", "alone"), ("logits.time", True), ("ics", {})):
        assert list(schema.iter_errors(changed(path, value))), path
    assert list(schema.iter_errors({key: value for key, value in STUDY.items() if key != "logits"}))
