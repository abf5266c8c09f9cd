"""Every wrong config ends in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

import ztw
from ztw.device import PRECISIONS
from ztw.evaluation.methods import PROTOCOLS
from ztw.exits.rules import ThresholdRule
from ztw.exits.thresholds import THRESHOLDS
from ztw.models.heads import POOLINGS, conv_head
from ztw.study.config import check_config
from ztw.study.facts import DATASETS
from ztw.study.names import (
    ANATOMY,
    ARCHS,
    BUILT_IN_DATASETS,
    ENSEMBLE_KINDS,
    GREY,
    NO_THRESHOLD,
    RECIPE,
    blocks,
)
from ztw.training.joint import REGIMES
from ztw.training.loop import OPTIMIZERS, SCHEDULES, Recipe

ROOT = Path(__file__).parents[2]
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
    ("backbone.epoch", 3, "backbone.epoch: unknown key; known: source, path"),
    (
        "methods.sdn.threshold",
        3,
        "methods.sdn.threshold: unknown key; known: ics, ensemble, rule, thresholds",
    ),
    ("datasets", ["mnist"], "datasets: 'mnist' is unknown; known: fashion_mnist, cifar10, cifar100, tiny_im"),
    ("archs", ["vgg16_bn"], "archs: 'vgg16_bn' needs images of at least 32 pixels a side, digits has 8"),
    ("compile", "maybe", "compile: 'maybe' is unknown; known: auto, true, false"),
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
    ("ics.placement", "some", "ics.placement: 'some' is unknown; known: all, every <n>, a list of block"),
    ("ics.placement", "every 4", "ics.placement: 'every 4': resnet8 has only 3 blocks"),
    ("ics.placement", "every 0", "ics.placement: 'every 0' is unknown; known: all, every <n>"),
    ("ics.sets.own", {"mode": "cascade", "placement": [7]}, "ics.sets.own.placement: 7: resnet8 has blocks"),
    (
        "ics.sets.own",
        {"mode": "cascade", "heads": 1},
        "ics.sets.own.heads: unknown key; known: mode, training",
    ),
    (
        "ics.sets.own",
        {"mode": "cascade", "start": "scratch"},
        "ics.sets.own.start: scratch: training separate",
    ),
    (
        "ics.sets.own",
        {"mode": "cascade", "exit_weights": "depth"},
        "ics.sets.own.exit_weights: has no meaning with training separate",
    ),
    (
        "ics.sets.own",
        {"mode": "boosted", "training": "layer_wise", "rescale_gradients": True},
        "ics.sets.own.rescale_gradients: has no meaning with training layer_wise",
    ),
    (
        "ics.sets.own",
        {"mode": "boosted", "training": "joint", "exit_weights": "deep"},
        "ics.sets.own.exit_weights: 'deep' is unknown; known: uniform, depth, growing, a list",
    ),
    (
        "ics.sets.own",
        {"mode": "boosted", "training": "joint", "exit_weights": [1, 2, 3]},
        "ics.sets.own.exit_weights: 3 numbers, resnet8 has 2 exits there",
    ),
    (
        "ics.sets.own",
        {"mode": "independent", "schedule": "milestones", "milestones": [3]},
        "ics.sets.own.milestones: 3 is not before the last of 1 epochs",
    ),
    ("ensembles.sets.own", {"kind": "mean"}, "ensembles.sets.own.kind: 'mean' is unknown; known: geometric"),
    (
        "methods.pabee.thresholds",
        "per_exit",
        "methods.pabee.thresholds: 'per_exit': the rule patience has no",
    ),
    ("methods.sdn.thresholds", "each", "methods.sdn.thresholds: 'each' is unknown; known: shared, per_exit"),
    ("backbone.source", "hub", "backbone.source: 'hub' is unknown; known: train, torchvision, file, url"),
    ("backbone.source", "torchvision", "backbone.source: torchvision has no weights for 'resnet8'"),
    ("backbone.source", "file", "backbone.path: the key is missing (source file)"),
    ("backbone.path", "x.pt", "backbone.path: has no meaning with source train"),
    (
        "backbone",
        {"source": "url", "url": "https://x/y.pt"},
        "backbone.sha256: the key is missing (source url)",
    ),
    ("backbone", {"lr": 0.1}, "backbone.epochs: 0 must be > 0 (source train)"),
    ("backbone.shortcut", "A", "backbone.shortcut: 'A' is unknown; known: conv, pad"),
    ("data.mean", [0.5, 0.5], "data.mean: [0.5, 0.5]: digits has 1 channel(s)"),
    ("archs", ["torchvision/resnet18"], "archs: 'torchvision/resnet18' needs colour images"),
    ("archs", ["torchvision/resnet19"], "archs.0: 'torchvision/resnet19' is unknown; known: resnet8"),
    (
        "overrides",
        [{"datasets": ["cifar10"]}],
        "overrides.0.datasets: 'cifar10' is not in datasets; listed: digits",
    ),
    ("overrides", [{"backbone": {"lrs": 1}}], "backbone.lrs: unknown key; known: source, path"),
    (
        "overrides",
        [{"backbone": {"lr": -1}}],
        "backbone.lr: -1 must be > 0 (after overrides, digits/resnet8)",
    ),
    (
        "overrides",
        [{"seeds": [1]}],
        "overrides.0.seeds: unknown key; known: datasets, archs, data, backbone, ics",
    ),
    (
        "overrides",
        [{"ics": {"sets": {"independent": {"training": "joint"}}}}],
        "ics.sets.independent.training: the same for all cells",
    ),
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
    ("ics.sets.own", {"mode": "boosted"}, "ics.sets.own.mode: boosted: the backbone's own exit adds to"),
    (
        "ics.sets.own",
        {"mode": "cascade", "head": "pool", "width": 0.5},
        "ics.sets.own.width: has no meaning with head pool",
    ),
    (
        "ics.sets.own",
        {"mode": "cascade", "training": "joint", "exit_weights": [0, 0]},
        "ics.sets.own.exit_weights: [0, 0]: one must be above 0",
    ),
    ("ics.placement", [0.1, 0.2, 0.3, 0.4], "ics.placement: [0.1, 0.2, 0.3, 0.4]: 4 exits, resnet8 has 3"),
    ("ensembles.sets.uniform", {"kind": "geometric"}, "ensembles.sets.uniform: is the name of a kind"),
    (
        "methods.sdn-risk",
        {"ics": "independent", "ensemble": "few", "rule": "entropy", "thresholds": "risk_controlled"},
        "methods.sdn-risk.thresholds: risk_controlled: its ensemble is fitted on the validation images",
    ),
    (
        "backbone",
        {"source": "file", "path": "x.pt"},
        "methods.sdn-risk.thresholds: risk_controlled: weights from file may have been trained on",
    ),
    ("overrides", [{"data": {"root": "x"}}], "data.root: the same for all cells"),
    ("evaluation.allowed_losses", [0.0005], "evaluation.allowed_losses.0: 0.0005 must be >= 0.001"),
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


def test_overrides_change_their_cells_only():
    config = changed("archs", ["resnet8", "resnet14"])
    config["overrides"] = [{"archs": ["resnet14"], "backbone": {"weight_decay": 0.25}, "ics": {"epochs": 3}}]
    cells = check_config(config, SCHEMA)["cells"]
    assert cells["digits", "resnet8"]["backbone"]["weight_decay"] == 0.0005
    assert cells["digits", "resnet14"]["backbone"]["weight_decay"] == 0.25
    epochs = {key: cell["ics"]["sets"]["independent"]["recipe"]["epochs"] for key, cell in cells.items()}
    assert epochs == {("digits", "resnet8"): 1, ("digits", "resnet14"): 3}


def test_a_joint_training_takes_the_backbones_recipe_unless_it_says_so():
    (cell,) = check_config(TINY, SCHEMA)["cells"].values()
    sets = cell["ics"]["sets"]
    assert (sets["independent"]["recipe"]["optimizer"], sets["independent"]["recipe"]["lr"]) == (
        "adam",
        0.003,
    )
    assert (sets["depth_weighted"]["recipe"]["optimizer"], sets["depth_weighted"]["recipe"]["lr"]) == (
        "sgd",
        0.1,
    )
    assert (sets["independent"]["head"], sets["depth_weighted"]["head"]) == ("conv", "pool")


def test_an_ensemble_of_its_own_takes_the_rest_from_the_section():
    config = changed(
        "ensembles", {"include_final": False, "sets": {"few": {"kind": "geometric", "samples": 5}}}
    )
    sets = check_config(changed("ensembles", config["ensembles"]), SCHEMA)["ensembles"]["sets"]
    assert sets["few"] == {"kind": "geometric", "samples": 5, "include_final": False, "fit_on": "train"}
    assert sets["uniform"]["samples"] is None


def names(*path: str) -> list:
    part = SCHEMA
    for key in path:
        part = part[key]
    return part["enum"]


def test_the_schema_lists_what_the_tables_have():
    ics = ("properties", "ics", "properties")
    method = ("properties", "methods", "additionalProperties", "properties")
    own = (*ics, "sets", "additionalProperties", "properties")
    for place in (ics, own):
        assert names(*place, "head") == list(ztw.HEADS)
        assert names(*place, "pooling") == list(POOLINGS)
        assert names(*place, "optimizer") == list(OPTIMIZERS)
        assert set(names(*place, "schedule")) == set(SCHEDULES)
    assert names(*own, "training") == list(REGIMES)
    assert tuple(ztw.BACKBONES) == ARCHS
    assert names(*method, "thresholds") == list(THRESHOLDS)
    assert {name for name, rule in ztw.RULES.items() if not issubclass(rule, ThresholdRule)} == set(
        NO_THRESHOLD
    )
    assert names("properties", "evaluation", "properties", "protocols", "items") == list(PROTOCOLS)
    assert {*RECIPE, "precision", "compile"} == {field.name for field in dataclasses.fields(Recipe)}
    assert {name for name, facts in DATASETS.items() if facts.channels == 1} == set(GREY)
    assert names(*ics, "sets", "additionalProperties", "properties", "mode") == list(ztw.IC_MODES)
    assert tuple(ztw.ENSEMBLES) == ENSEMBLE_KINDS
    kinds = ("properties", "ensembles", "properties", "sets", "additionalProperties", "properties", "kind")
    assert names(*kinds) == list(ztw.ENSEMBLES)
    anatomy = inspect.signature(ztw.build_network).parameters
    assert {"head", "placement"} < set(anatomy)
    assert set(ANATOMY) - {"head", "placement"} < set(inspect.signature(conv_head).parameters)
    assert names(*method, "rule") == list(ztw.RULES)
    assert names("properties", "precision") == list(PRECISIONS)
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
