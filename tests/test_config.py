"""Every wrong config ends in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

import ztw
from ztw.config import BUILT_IN_DATASETS, blocks, check_config
from ztw.data import DATASETS
from ztw.device import PRECISIONS
from ztw.training import SCHEDULES

ROOT = Path(__file__).parent.parent
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
TINY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
SHIPPED = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("tests/config/*.yaml")])


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(TINY)
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place.setdefault(parent, {})
    place[key] = value
    return config


WRONG = [
    ("epochs", 3, "epochs: unknown key; known: datasets, archs, seeds"),
    ("backbone.epoch", 3, "backbone.epoch: unknown key; known: epochs, batch_size"),
    ("methods.sdn.threshold", 3, "methods.sdn.threshold: unknown key; known: ics, ensemble, rule"),
    ("datasets", ["mnist"], "datasets: 'mnist' is unknown; known: fashion_mnist, cifar10, cifar100, digits"),
    ("archs", ["vgg16_bn"], "archs: 'vgg16_bn' needs images of at least 32 pixels a side, digits has 8"),
    ("archs", ["resnet21"], "archs.0: 'resnet21' is unknown; known: resnet8"),
    ("methods.new", {"ics": "independent", "rule": "x"}, "methods.new.rule: 'x' is unknown; known: max_soft"),
    ("methods.sdn.ensemble", "mean", "methods.sdn.ensemble: 'mean' is unknown; known: geometric"),
    ("methods.sdn.ics", "cascaded", "methods.sdn.ics: 'cascaded' is not in ics.sets; listed: independent"),
    ("ics.sets.odd", {"mode": "x"}, "ics.sets.odd.mode: 'x' is unknown; known: independent, cascade"),
    ("ics.sets", {}, "ics.sets: is empty, must name at least one"),
    ("methods", {}, "methods: is empty, must name at least one"),
    ("seeds", [], "seeds: is empty, must name at least one"),
    ("seeds", [1, 1], "seeds: [1, 1] names something twice"),
    ("seeds", [-1], "seeds.0: -1 must be >= 0"),
    ("seeds", 3, "seeds: 3 is not of type array"),
    ("ics.placement", [3], "ics.placement: 3: resnet8 has blocks 0..2"),
    ("ics.placement", [-1], "ics.placement: -1: resnet8 has blocks 0..2"),
    ("ics.placement", [0.5, 1.5], "ics.placement: 1.5: a fraction of the cost must lie in (0, 1]"),
    ("ics.placement", [0.0, 0.5], "ics.placement: 0.0: a fraction of the cost must lie in (0, 1]"),
    ("ics.placement", [1, 1], "ics.placement: [1, 1] must be increasing"),
    ("ics.placement", "some", "ics.placement: 'some' is unknown; known: all, a list of block indices"),
    ("evaluation.budgets", [0], "evaluation.budgets.0: 0 must be > 0"),
    ("evaluation.budgets", [-0.5], "evaluation.budgets.0: -0.5 must be > 0"),
    ("evaluation.budgets", ["min"], "evaluation.budgets.0: 'min' must match ^max$"),
    ("data.validation_fraction", 0, "data.validation_fraction: 0 must be > 0"),
    ("data.validation_fraction", 1, "data.validation_fraction: 1 must be < 1"),
    ("backbone.lr", "1e-3", "backbone.lr: '1e-3' is not of type number (YAML reads it as text: write 0.001"),
    ("backbone.batch_size", "1e2", "(YAML reads it as text: write 100, or"),
    ("backbone.batch_size", 100.0, "backbone.batch_size: 100.0 is not of type integer"),
    ("backbone.batch_size", 1, "backbone.batch_size: 1 must be >= 2"),
    ("seeds", [1.0], "seeds.0: 1.0 is not of type integer"),
    ("ensembles.samples", "1e4", "(YAML reads it as text: write 10000, or"),
    ("evaluation.budgets", [float("nan")], "evaluation.budgets.0: nan is not of type number"),
    ("evaluation.budgets", ["1e-1"], "must match ^max$ (YAML reads it as text: write 0.1"),
    ("backbone.lr", True, "backbone.lr: True is not of type number"),
    ("backbone.epochs", 0, "backbone.epochs: 0 must be > 0"),
    ("backbone.batch_size", 1.5, "backbone.batch_size: 1.5 is not of type integer"),
    ("backbone.milestones", [1], "backbone.milestones: [1] has no meaning with schedule one_cycle"),
    ("ics.milestones", [5], "ics.milestones: 5 is not before the last of 1 epochs"),
    ("data.image_folders", {"digits": {"path": "x", "size": 8}}, "data.image_folders.digits: is the name of"),
    ("data.image_folders", {"mine": {"path": "x"}}, "data.image_folders.mine: the key 'size' is missing"),
    ("precision", "fp16", "precision: 'fp16' is unknown; known: auto, bf16, fp32"),
    ("tracking", "wandb", "tracking: 'wandb' is unknown; known: sqlite, none, or a tracking server's URI"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_config(path, value, message):
    with pytest.raises(ztw.ZtwError, match=re.escape(message)) as caught:
        check_config(changed(path, value), SCHEMA)
    assert "\n" not in str(caught.value)


def test_missing_section():
    config = {key: value for key, value in TINY.items() if key != "seeds"}
    with pytest.raises(ztw.ZtwError, match="config: the key 'seeds' is missing"):
        check_config(config, SCHEMA)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    config = check_config(yaml.safe_load(path.read_text()), SCHEMA)
    assert config["evaluation"]["points"] >= 2
    assert all("ensemble" in method for method in config["methods"].values())


def names(*path: str) -> list:
    part = SCHEMA
    for key in path:
        part = part[key]
    return part["enum"]


def test_the_schema_lists_what_the_tables_have():
    ics = ("properties", "ics", "properties")
    method = ("properties", "methods", "additionalProperties", "properties")
    assert names("properties", "archs", "items") == list(ztw.BACKBONES)
    assert names(*ics, "head") == list(ztw.HEADS)
    assert names(*ics, "sets", "additionalProperties", "properties", "mode") == list(ztw.IC_MODES)
    assert names(*method, "ensemble") == [*ztw.ENSEMBLES, None]
    assert names(*method, "rule") == list(ztw.RULES)
    assert names("properties", "precision") == list(PRECISIONS)
    assert set(names(*ics, "schedule")) == set(SCHEDULES)
    assert {name: facts.size for name, facts in DATASETS.items()} == BUILT_IN_DATASETS


@pytest.mark.parametrize("arch", list(ztw.BACKBONES))
def test_blocks_are_what_the_backbone_has(arch):
    assert blocks(arch) == len(ztw.build_backbone(arch, size=32).stages)


def test_the_manual_explains_every_key():
    manual = (ROOT / "config/README.md").read_text()

    def keys(schema: dict) -> list[str]:
        found = []
        for key, part in schema.get("properties", {}).items():
            found += [key, *keys(part)]
        if isinstance(schema.get("additionalProperties"), dict):
            found += keys(schema["additionalProperties"])
        return found

    missing = [key for key in keys(SCHEMA) if f"`{key}`" not in manual]
    assert not missing
