"""Test that every wrong config gives a one-line error with the key, the value and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import ztw
from ztw.catalogue.architectures import ARCHS, OPTION_OWNERS, blocks
from ztw.catalogue.datasets import DATASETS
from ztw.catalogue.parts import BUILT_IN, FITTED, NO_THRESHOLD
from ztw.device import PRECISIONS
from ztw.exits.ensembles import ENSEMBLES
from ztw.exits.fitted_base import FittedRule
from ztw.exits.rules import RULES, ThresholdRule
from ztw.exits.thresholds import THRESHOLDS
from ztw.models.architectures import BACKBONES
from ztw.models.backbone import BackboneOptions
from ztw.models.cifar_resnet import IC_FEATURES, SHORTCUTS
from ztw.models.heads import HEADS
from ztw.models.initialisation import INITS
from ztw.models.pooling import POOLINGS
from ztw.study.config import check_study, read_config
from ztw.study.section import Section
from ztw.study.settings import HardwareSettings
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet, Recipe
from ztw.training.recipe import OPTIMIZERS, SCHEDULES
from ztw.training.recipe import Recipe as TrainingRecipe

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
SHIPPED = sorted([*ROOT.glob("config/**/*.yaml"), *ROOT.glob("tests/config/*.yaml")])


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
        "methods.sdn.threshold: unknown key; known: ics, ensemble, rule, thresholds, static",
    ),
    (
        "datasets",
        ["mnist"],
        "datasets: 'mnist' is unknown; known: fashion_mnist, cifar10, cifar100, svhn, tiny_im",
    ),
    ("archs", ["vgg16_bn"], "archs: 'vgg16_bn' needs images of at least 32 pixels ... digits has 8"),
    ("compile", "maybe", "compile: 'maybe' must be auto, true or false"),
    ("archs", ["resnet21"], "archs.0: 'resnet21' is unknown; known: resnet8"),
    ("methods.new", {"ics": "independent", "rule": "x"}, "methods.new.rule: 'x' is unknown; known: max_soft"),
    (
        "methods.small",
        {"static": "resnet21"},
        "methods.small.static: 'resnet21' is unknown; known: resnet8, resnet14",
    ),
    (
        "methods.small",
        {"static": "vgg16_bn"},
        "methods.small.static: 'vgg16_bn' needs images of at least 32 pixels a side",
    ),
    (
        "methods.small",
        {"static": "resnet8", "ics": "independent"},
        "methods.small.ics: has no meaning with static ... leave it out",
    ),
    ("methods.small", {"rule": "entropy"}, "methods.small: the key 'ics' is missing"),
    ("methods.sdn.ensemble", "mean", "methods.sdn.ensemble: 'mean' is unknown; known: geometric"),
    ("methods.sdn.ics", "cascaded", "methods.sdn.ics: 'cascaded' is not in ics.sets; listed: independent"),
    (
        "ics.sets.odd",
        {"connection": "x"},
        "ics.sets.odd.connection: 'x' is unknown; known: independent, cascade",
    ),
    ("ics.sets", {}, "ics.sets: is empty, must name at least one"),
    ("methods", {}, "methods: is empty, must name at least one"),
    ("seeds", [], "seeds: is empty, must name at least one"),
    ("seeds", [1, 1], "seeds: [1, 1] has a value twice"),
    ("seeds", [-1], "seeds.0: -1 must be >= 0"),
    ("seeds", 3, "seeds: 3 is not of type list"),
    ("ics.placement", [3], "ics.placement: 3: resnet8 has blocks 0..2"),
    ("ics.placement", [-1], "ics.placement: -1: resnet8 has blocks 0..2"),
    ("ics.placement", [0.5, 1.5], "ics.placement: 1.5: a fraction of the cost must lie in (0, 1]"),
    ("ics.placement", [0.0, 0.5], "ics.placement: 0.0: a fraction of the cost must lie in (0, 1]"),
    ("ics.placement", [1, 1], "ics.placement: [1, 1] must be increasing"),
    ("ics.placement", "some", "ics.placement: 'some' is unknown; known: all, every <n>, sdn, a list of b"),
    ("ics.placement", "every 4", "ics.placement: 'every 4': resnet8 has only 3 blocks"),
    ("ics.placement", "sdn", "ics.placement: 'sdn': 6 exits, resnet8 has 3 blocks"),
    ("ics.placement", "every 0", "ics.placement: 'every 0' is unknown; known: all, every <n>"),
    (
        "ics.sets.own",
        {"connection": "cascade", "placement": [7]},
        "ics.sets.own.placement: 7: resnet8 has blocks",
    ),
    (
        "ics.sets.own",
        {"connection": "cascade", "heads": 1},
        "ics.sets.own.heads: unknown key; known: connection, training",
    ),
    (
        "ics.sets.own",
        {"connection": "cascade", "start": "scratch"},
        "ics.sets.own.start: scratch: training separate",
    ),
    (
        "ics.sets.own",
        {"connection": "cascade", "exit_weights": "depth"},
        "ics.sets.own.exit_weights: has no meaning with training separate",
    ),
    (
        "ics.sets.own",
        {"connection": "boosted", "training": "layer_wise", "rescale_gradients": True},
        "ics.sets.own.rescale_gradients: has no meaning with training layer_wise",
    ),
    (
        "ics.sets.own",
        {"connection": "boosted", "training": "joint", "exit_weights": "deep"},
        "ics.sets.own.exit_weights: 'deep' is unknown; known: uniform, depth, growing, a list",
    ),
    (
        "ics.sets.own",
        {"connection": "boosted", "training": "joint", "exit_weights": [1, 2, 3]},
        "ics.sets.own.exit_weights: 3 numbers, resnet8 has 2 exits",
    ),
    (
        "ics.sets.own",
        {"connection": "independent", "schedule": "milestones", "milestones": [3]},
        "ics.sets.own.milestones: 3 must be < epochs, which is 1",
    ),
    ("ics.head", "linear", "ics.head: 'linear' is unknown; known: conv, pool"),
    (
        "ics.sets.own",
        {"connection": "cascade", "head": "pol"},
        "ics.sets.own.head: 'pol' is unknown; known: conv, pool, mlp, identity;",
    ),
    ("methods.sdn.rule", 3, "methods.sdn.rule: 3 is not of type text"),
    ("plugins", "my_parts.py", "plugins: 'my_parts.py' is not of type list"),
    ("plugins", [3], "plugins.0: 3 is not of type text"),
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
    (
        "backbone.ic_features",
        "inside",
        "backbone.ic_features: 'inside' is unknown; known: before_relu, after_relu",
    ),
    (
        "backbone.last_norm_momentum",
        0.9,
        "backbone.last_norm_momentum: 0.9: only wide_resnet_32_4 ... not resnet8",
    ),
    ("backbone.init", "kaiming", "backbone.init: 'kaiming' is unknown; known: torch, released"),
    ("backbone.pretrained", "v1", "backbone.pretrained: has no meaning with source train; leave it out"),
    ("backbone.expected_accuracy", 0.9, "backbone.expected_accuracy: has no meaning with source train"),
    ("backbone.expected_accuracy", 93.4, "backbone.expected_accuracy: 93.4 must be <= 1"),
    ("ics.init", "kaiming", "ics.init: 'kaiming' is unknown; known: torch, released"),
    (
        "ics.sets.own",
        {"connection": "cascade", "training": "layer_wise", "frozen_dropout": True},
        "ics.sets.own.frozen_dropout: has no meaning with training layer_wise",
    ),
    ("data.jitter_order", "any", "data.jitter_order: 'any' is unknown; known: fixed, random"),
    ("data.mean", [0.5, 0.5], "data.mean: [0.5, 0.5]: digits has 1 channel(s)"),
    ("archs", ["torchvision/resnet18"], "archs: 'torchvision/resnet18' needs colour images"),
    ("archs", ["torchvision/resnet19"], "archs.0: 'torchvision/resnet19' is unknown; known: resnet8"),
    ("archs", ["timm/resnet19"], "archs.0: 'timm/resnet19' is unknown to timm; similar: timm/resnet"),
    (
        "methods.resnet8",
        {"static": "timm/"},
        "methods.resnet8.static: 'timm/' is unknown to timm; no similar",
    ),
    ("archs", ["tim/resnet18"], "archs.0: 'tim/resnet18' is unknown; known: resnet8"),
    ("data.training_images", 1, "data.training_images: 1 must be >= 2"),
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
        "ics.sets.independent.training: ... the same for all cells",
    ),
    ("evaluation.budgets", [0], "evaluation.budgets.0: 0 must be a number > 0 or max"),
    ("evaluation.budgets", [-0.5], "evaluation.budgets.0: -0.5 must be a number > 0 or max"),
    ("evaluation.budgets", ["min"], "evaluation.budgets.0: 'min' must be a number > 0 or max"),
    (
        "data.validation_fraction",
        0,
        "data.validation_fraction: 0: ... evaluation.protocols",
    ),
    ("data.validation_fraction", -0.1, "data.validation_fraction: -0.1 must be >= 0"),
    ("data.validation_fraction", 1, "data.validation_fraction: 1 must be < 1"),
    ("backbone.lr", "1e-3", "backbone.lr: '1e-3' is not of type number (YAML reads it as text: write 0.001"),
    ("backbone.batch_size", "1e2", "(YAML reads it as text: write 100, or"),
    ("backbone.batch_size", 100.0, "backbone.batch_size: 100.0 is not of type integer"),
    ("backbone.batch_size", 1, "backbone.batch_size: 1 must be >= 2"),
    ("seeds", [1.0], "seeds.0: 1.0 is not of type integer"),
    ("ensembles.samples", "1e4", "(YAML reads it as text: write 10000, or"),
    ("evaluation.budgets", [float("nan")], "evaluation.budgets.0: nan must be a number > 0 or max"),
    ("evaluation.budgets", ["1e-1"], "must be a number > 0 or max (YAML reads it as text: write 0.1"),
    ("backbone.lr", True, "backbone.lr: True is not of type number"),
    ("backbone.epochs", 0, "backbone.epochs: 0 must be > 0"),
    ("backbone.batch_size", 1.5, "backbone.batch_size: 1.5 is not of type integer"),
    ("backbone.milestones", [1], "backbone.milestones: [1] has no meaning with schedule one_cycle"),
    ("ics.milestones", [5], "ics.milestones: 5 must be < epochs, which is 1"),
    ("data.image_folders", {"digits": {"path": "x", "size": 8}}, "data.image_folders.digits: is the name of"),
    (
        "data.image_folders",
        {"mine": {"path": "x", "size": 8, "sha256": "abc"}},
        "data.image_folders.mine.sha256: 'abc'",
    ),
    ("data.image_folders", {"mine": {"path": "x"}}, "data.image_folders.mine: the key 'size' is missing"),
    ("precision", "fp16", "precision: 'fp16' is unknown; known: auto, bf16, fp32"),
    ("tracking", "wandb", "tracking: 'wandb' is unknown; known: sqlite, none, or a tracking server's URI"),
    (
        "ics.sets.own",
        {"connection": "boosted"},
        "ics.sets.own.connection: boosted: the backbone's own exit adds to",
    ),
    (
        "ics.sets.own",
        {"connection": "cascade", "head": "pool", "width": 0.5},
        "ics.sets.own.width: has no meaning with head pool",
    ),
    (
        "ics.sets.own",
        {"connection": "cascade", "training": "joint", "exit_weights": [0, 0]},
        "ics.sets.own.exit_weights: [0, 0]: ... > 0",
    ),
    ("ics.placement", [0.1, 0.2, 0.3, 0.4], "ics.placement: [0.1, 0.2, 0.3, 0.4]: 4 exits, resnet8 has 3"),
    ("ensembles.sets.uniform", {"kind": "geometric"}, "ensembles.sets.uniform: is the name of a kind"),
    (
        "methods.sdn-risk",
        {"ics": "independent", "ensemble": "few", "rule": "entropy", "thresholds": "risk_controlled"},
        "methods.sdn-risk.thresholds: risk_controlled: its ensemble is fitted on the validation images",
    ),
    (
        "methods.sdn-risk",
        {"ics": "independent", "rule": "pcee", "thresholds": "risk_controlled"},
        "methods.sdn-risk.thresholds: risk_controlled: the rule pcee is fitted on the same images",
    ),
    (
        "backbone",
        {"source": "file", "path": "x.pt"},
        "methods.sdn-risk.thresholds: risk_controlled: weights from file may have been trained on",
    ),
    ("overrides", [{"data": {"root": "x"}}], "data.root: ... the same for all cells"),
    ("evaluation.allowed_losses", [0.0005], "evaluation.allowed_losses.0: 0.0005 must be >= 0.001"),
    ("latency.runtimes", ["onnx"], "latency.runtimes.0: 'onnx' is unknown; known: pytorch, onnxruntime"),
    ("latency.runtimes", ["onnxruntime"], "latency.runtimes: ['onnxruntime'] must include pytorch"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_config(path, value, message):
    """message: parts of the error in order, ` ... ` between them."""
    parts = ".*".join(re.escape(part) for part in message.split(" ... "))
    with pytest.raises(ztw.ZtwError, match=parts) as caught:
        check_study(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ic_features", "after_relu", "only the CIFAR ResNets.* not mobilenet;"),
        ("shortcut", "pad", "only the CIFAR ResNets.* not mobilenet;"),
        ("init", "released", "only the paper's architectures.* not torchvision/resnet18;"),
    ],
)
def test_what_an_architecture_does_not_have_is_refused_in_its_cells_only(key, value, message):
    config = changed("archs", ["resnet8", message.split()[-1].strip(";")])
    config["data"]["image_folders"] = {"mine": {"path": "x", "size": 32}}
    config |= {"datasets": ["mine"], "evaluation": {"protocols": ["paper"]}}
    check_study(config)
    given = config["backbone"]
    config["backbone"] = {**given, key: value}
    with pytest.raises(ztw.ZtwError, match=f"backbone.{key}: '{value}': {message}"):
        check_study(config)
    config |= {"backbone": given, "overrides": [{"archs": ["resnet8"], "backbone": {key: value}}]}
    cells = check_study(config).cells
    assert getattr(cells["mine", "resnet8"].backbone, key) == value


def test_a_timm_model_may_have_any_number_of_blocks():
    """timm is not imported here, so the placement is checked when the network is built."""
    config = changed("archs", ["timm/test_resnet"]) | {"evaluation": {"protocols": ["held-out"]}}
    for placement in ("all", "every 30", [0, 77], [0.2, 0.7]):
        config["ics"] |= {"placement": placement}
        check_study(config)
    for placement, message in (
        ([3, 1], r"\[3, 1\] must be increasing"),
        ([-1], "-1: timm/test_resnet has blocks 0.."),
        ([0.2, 1.5], "a fraction of the cost must lie in"),
        ("every", "'every' is unknown"),
    ):
        config["ics"] |= {"placement": placement}
        with pytest.raises(ztw.ZtwError, match=message):
            check_study(config)


def test_the_published_counter_supports_none_of_timms_models():
    config = changed("archs", ["timm/test_resnet"])
    config |= {"datasets": ["cifar10"], "evaluation": {"protocols": ["published"]}}
    with pytest.raises(
        ztw.ZtwError, match=r"protocols: published: .* none of timm's models, .* timm/test_resnet;"
    ):
        check_study(config)


def test_the_published_counter_knows_one_of_torchvisions_models():
    config = changed("archs", ["torchvision/resnet50"])
    config |= {"datasets": ["cifar10"], "evaluation": {"protocols": ["published"]}}
    check_study(config)
    config["archs"] = ["torchvision/vit_b_16"]
    with pytest.raises(ztw.ZtwError, match=r"published.*torchvision/resnet50 only.*not torchvision/vit_b_16"):
        check_study(config)


def test_the_papers_studies_use_the_released_values():
    cells = check_study(read_config(ROOT / "config/paper.yaml")).cells
    for (dataset, arch), cell in cells.items():
        backbone = cell.backbone
        assert (backbone.ic_features, backbone.init) == ("before_relu", "released")
        assert backbone.last_norm_momentum == (0.9 if arch == "wide_resnet_32_4" else 0.1)
        assert cell.data.mean == ((0.485, 0.456, 0.406) if dataset == "cifar10" else None)
        assert cell.data.std == ((0.229, 0.224, 0.225) if dataset == "cifar10" else None)
        assert cell.data.jitter_order == "random"
        for ics in cell.ics.sets.values():
            assert (ics.init, ics.frozen_dropout) == ("released", True)
    (imagenet,) = check_study(read_config(ROOT / "config/imagenet.yaml")).cells.values()
    assert (imagenet.backbone.pretrained, imagenet.ics.init) == ("v1", "released")


def test_the_papers_twin_holds_nothing_out_and_is_the_same_otherwise():
    paper, twin = (read_config(ROOT / f"config/{name}.yaml") for name in ("paper", "paper-published"))
    assert check_study(twin).data.validation_fraction == 0
    assert twin["evaluation"].pop("protocols") == ["published", "paper"]
    del twin["data"]["validation_fraction"], twin["latency"], paper["evaluation"]["protocols"]
    del paper["methods"]["risk-controlled"]
    assert twin == paper


def test_missing_section():
    config = {key: value for key, value in TINY.items() if key != "seeds"}
    with pytest.raises(ztw.ZtwError, match="config: the key 'seeds' is missing"):
        check_study(config)


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("backbone.epoch", 3, "did you mean epochs?"),
        ("ics.sets.own", {"connection": "cascade_detachd"}, "did you mean cascade_detached?"),
        ("methods.ztw.ics", "independant", "did you mean independent?"),
        ("methods.ztw.ensemble", "geometrc", "did you mean geometric?"),
        ("datasets", ["digit"], "did you mean digits?"),
        # methods and sets with the names of keys
        ("methods.ensemble", {"ics": "independent", "rule": "entropy", "threshold": 1}, "mean thresholds?"),
        ("ics.sets.head", {"connection": "cascade", "poling": "max"}, "did you mean pooling?"),
    ],
)
def test_a_near_miss_is_named(path, value, hint):
    with pytest.raises(ztw.ZtwError, match=re.escape(hint)):
        check_study(changed(path, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [digits]\ndatasets: [x]\n", "line 2: the key 'datasets' appears twice"),
        ("backbone:\n  lr: 1.0\n  epochs: 2\n  lr: 2.0\n", "line 4: the key 'lr' appears twice"),
        ("methods:\n  off: {ics: a}\n", "line 2: YAML reads the key off as False; put it in quotes"),
        ("methods: {2021: {ics: a}}\n", "line 1: YAML reads the key 2021 as 2021; put it in quotes"),
        (
            "ics:\n  sets:\n    1: {connection: cascade}\n",
            "line 3: YAML reads the key 1 as 1; put it in quotes",
        ),
        ("a: &a {lr: 1}\nb:\n  <<: *a\n  <<: *a\n", "line 4: the key '<<' appears twice"),
        ("? [a, b]\n: 1\n", "line 1: the key ['a', 'b'] is not text"),
        ("seeds: [010]\n", "line 1: YAML reads 010 as 8; write 8"),
        ("lr: 1\nsamples: 1:30\n", "line 2: YAML reads 1:30 as 90; write"),
        ("lr: 1:30.5\n", "line 1: YAML reads 1:30.5 as 90.5; write"),
        ("lr: 2021-99-99\n", "not YAML (month must be in 1..12"),
        ("lr: !!float x\n", "not YAML (could not convert"),
        ("lr: !!bool x\n", "not YAML ('x')"),
        ("[" * 1200, "not YAML (maximum recursion depth"),
        ("seeds: [", "not YAML"),
        ("- a\n", "must be a mapping of keys"),
        ("", "must be a mapping of keys"),
    ],
)
def test_yaml_is_as_strict_as_the_study(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ztw.ZtwError, match=re.escape(message)) as caught:
        read_config(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)


def test_numbers_and_merged_sections_are_read(tmp_path):
    (tmp_path / "s.yaml").write_text("a: &a {lr: 1_000, seed: 0}\nb: {<<: *a, seed: 0x1F, lr: -0.5}\n")
    assert read_config(tmp_path / "s.yaml")["b"] == {"lr": -0.5, "seed": 31}


def test_a_config_in_another_encoding_is_named(tmp_path):
    (tmp_path / "s.yaml").write_bytes("datasets: [Gemüse]".encode("latin-1"))
    with pytest.raises(ztw.ZtwError, match="not UTF-8"):
        read_config(tmp_path / "s.yaml")


def test_a_name_that_is_not_text_is_refused():
    with pytest.raises(ztw.ZtwError, match="methods: the key False is not text"):
        check_study({**TINY, "methods": {False: {"ics": "independent", "rule": "entropy"}}})
    with pytest.raises(ztw.ZtwError, match=r"^'a\\nb': the key None is not text; put it in quotes$"):
        check_study({**TINY, "a\nb": {None: None}})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    study = check_study(read_config(path))
    assert set(study.cells) == set(product(study.datasets, study.archs))


def test_a_checked_study_cannot_be_changed():
    study = check_study(TINY)
    with pytest.raises(ValueError, match="frozen"):
        study.backbone.epochs = 3
    assert isinstance(study.datasets, tuple)


def test_overrides_change_their_cells_only():
    config = changed("archs", ["resnet8", "resnet14"])
    config["overrides"] = [{"archs": ["resnet14"], "backbone": {"weight_decay": 0.25}, "ics": {"epochs": 3}}]
    cells = check_study(config).cells
    assert cells["digits", "resnet8"].backbone.weight_decay == 0.0005
    assert cells["digits", "resnet14"].backbone.weight_decay == 0.25
    epochs = {key: cell.ics.sets["independent"].epochs for key, cell in cells.items()}
    assert epochs == {("digits", "resnet8"): 1, ("digits", "resnet14"): 3}


def test_a_static_network_takes_the_backbone_s_settings_and_overrides():
    config = changed("methods.small", {"static": "resnet20"})
    config["overrides"] = [{"archs": ["resnet20"], "backbone": {"weight_decay": 0.25}}]
    study = check_study(config)
    assert set(study.cells) == {("digits", "resnet8")}, "it is no cell"
    assert study.statics == {"resnet14": "resnet14", "resnet8": "resnet8", "resnet20": "resnet20"}
    assert study.backbones["digits", "resnet14"].backbone == study.cells["digits", "resnet8"].backbone
    assert study.backbones["digits", "resnet20"].backbone.weight_decay == 0.25


def test_a_static_row_may_have_a_training_of_its_own():
    config = changed("methods.long", {"static": "resnet14", "epochs": 3, "schedule": "one_cycle"})
    config["backbone"] |= {"schedule": "milestones", "milestones": [1], "epochs": 2}
    config["methods"]["taught"] = {"static": "resnet14", "distillation": {"teacher": "long"}}
    config["overrides"] = [{"archs": ["resnet14"], "backbone": {"weight_decay": 0.25}}]
    study = check_study(config)
    own = {"long": "resnet14", "taught": "resnet14"}
    assert study.statics == {"resnet14": "resnet14", "resnet8": "resnet8", **own}
    plain, long, taught = (study.backbones["digits", name].backbone for name in ("resnet14", *own))
    assert (plain.epochs, plain.schedule, plain.weight_decay) == (2, "milestones", 0.25)
    assert (long.epochs, long.schedule, long.milestones, long.weight_decay) == (3, "one_cycle", (), 0.25)
    assert taught == plain
    assert set(study.cells) == {("digits", "resnet8")}


def test_an_int8_row_shares_the_network_of_the_same_row_in_float():
    rows = {
        "long": {"static": "resnet14", "epochs": 3},
        "long-int8": {"static": "resnet14", "epochs": 3, "int8": True},
        "longer-int8": {"static": "resnet14", "epochs": 4, "int8": True},
        "both-int8": {"cascade_of": ["resnet14", "long"], "int8": True},
        "sdn-int8": {"ics": "independent", "int8": True},
    }
    study = check_study(changed("methods", TINY["methods"] | rows) | INT8)
    own = dict.fromkeys(("resnet14", "long", "longer-int8"), "resnet14")
    assert study.statics == {**own, "resnet8": "resnet8"}
    assert study.int8_sets == ["independent"]
    assert study.int8_statics == ["long", "longer-int8", "resnet14"]
    assert study.families["sdn-int8"] == study.families["sdn"]


INT8: dict[str, Any] = {"latency": {"batch_sizes": []}}


@pytest.mark.parametrize(
    ("keys", "row", "error"),
    [
        (
            {"latency": {"runtimes": ["pytorch"]}},
            {"ics": "independent", "int8": True},
            "methods.m.int8: true: is timed in ONNX Runtime only; add onnxruntime to latency.runtimes, or set"
            " latency.batch_sizes to []",
        ),
        (
            {"latency": {}, "device": "cuda:1"},
            {"static": "resnet14", "int8": True},
            "methods.m.int8: true: is timed on the CPU only, but device is cuda:1; set device to cpu, or"
            " latency.batch_sizes to []",
        ),
        (
            INT8,
            {"cascade_of": ["resnet14", "small-int8"], "int8": True},
            "methods.m.cascade_of: 'small-int8' is unknown; known: resnet14, resnet8; a member is a static row, not"
            " in int8; set int8 for the cascade",
        ),
    ],
)
def test_int8_that_cannot_be_is_one_line(keys, row, error):
    rows = {"small-int8": {"static": "resnet20", "int8": True}} if "small-int8" in str(row) else {}
    with pytest.raises(ztw.ZtwError) as raised:
        check_study(changed("methods", TINY["methods"] | rows | {"m": row}) | keys)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("methods", "error"),
    [
        (
            {"a": {"cascade_of": ["x", "y"]}},
            "methods.a.cascade_of: 'x' is unknown; known: none; a member is a static",
        ),
        (
            {"sdn": {"ics": "independent", "input_size": 16}},
            "a network of its own; set it under backbone, or leave",
        ),
    ],
)
def test_an_error_names_what_there_is(methods, error):
    statics = {name for name, row in TINY["methods"].items() if {"static", "cascade_of"} & row.keys()}
    others = {name: row for name, row in TINY["methods"].items() if name not in statics}
    with pytest.raises(ztw.ZtwError, match=error):
        check_study(changed("methods", others | methods))


@pytest.mark.parametrize(
    ("methods", "error"),
    [
        (
            {"both": {"cascade_of": ["resnet14"]}},
            "methods.both.cascade_of: ['resnet14'] must name at least 2",
        ),
        ({"both": {"cascade_of": []}}, "methods.both.cascade_of: is empty, must name at least 2"),
        (
            {"both": {"cascade_of": ["resnet14", 3]}},
            "methods.both.cascade_of.1: 3 is not of type text",
        ),
        (
            {"resnet8": {"static": "resnet14", "epochs": 2}},
            "methods.resnet8: has a training of its own, and resnet8 is a network of this study already;"
            " choose another name for the method",
        ),
        (
            {"long": {"static": "resnet14", "milestones": [5], "schedule": "milestones", "epochs": 2}},
            "methods.long.milestones: 5 must be < epochs, which is 2",
        ),
        (
            {"sdn": {"ics": "independent", "epochs": 2}},
            "methods.sdn.epochs: only a static row trains a network of its own; set it under ics.sets, or leave it out",
        ),
        (
            {"a": {"static": "resnet14", "distillation": {"teacher": "sdn"}}},
            "methods.a.distillation.teacher: 'sdn' is unknown; known: resnet14, resnet8, a; a teacher is a static row,"
            " not in int8",
        ),
        (
            {
                "a": {"static": "resnet14", "distillation": {"teacher": "b"}},
                "b": {"static": "resnet20", "distillation": {"teacher": "a"}},
            },
            "methods.b.distillation.teacher: 'a' learns from 'b' in turn; choose another teacher",
        ),
    ],
)
def test_a_wrong_training_of_a_row_is_one_line(methods, error):
    config = changed("methods", TINY["methods"] | methods)
    with pytest.raises(ztw.ZtwError) as raised:
        check_study(config)
    assert str(raised.value) == error


def test_a_method_s_family_depends_on_training_and_connection():
    families = check_study(TINY).families
    assert "resnet14" not in families
    assert {name: families[name] for name in ("pabee", "cascade", "ensemble", "pabee-original")} == {
        "pabee": "frozen",
        "cascade": "recycled",
        "ensemble": "recycled",
        "pabee-original": "together",
    }


def test_the_headline_has_two_methods_of_a_family_and_the_one_that_recycles_most():
    study = check_study(TINY)
    names = [name for name in study.methods if name in study.headline]
    assert list(study.headline) == names, "in the order of the study"
    assert "cut" not in names, "a fixed exit"
    config = read_config(Path(__file__).parents[2] / "config/reference/cifar10-jpeg-frontier.yaml")
    assert check_study(config).headline == (
        *("sdn", "ztw", "joint", "cascade-8-14-20", "cascade-8-14-20-int8", "joint-ensemble-int8"),
    )
    config = read_config(Path(__file__).parents[2] / "config/quick.yaml")
    assert check_study(config).headline == ("sdn", "pabee", "ztw")


def test_an_override_can_empty_a_list():
    config = changed("backbone", {"epochs": 5, "milestones": [2]})
    config["overrides"] = [{"backbone": {"milestones": []}}]
    assert check_study(config).cells["digits", "resnet8"].backbone.milestones == ()


def test_a_joint_training_takes_the_backbones_recipe_unless_it_says_so():
    (cell,) = check_study(TINY).cells.values()
    independent, depth_weighted = cell.ics.sets["independent"], cell.ics.sets["depth_weighted"]
    assert (independent.optimizer, independent.lr, independent.head) == ("adam", 0.003, "conv")
    assert (depth_weighted.optimizer, depth_weighted.lr, depth_weighted.head) == ("sgd", 0.1, "pool")


def test_an_error_names_the_section_that_has_the_value():
    config = changed("backbone", {"epochs": 5, "milestones": [7]})
    with pytest.raises(ztw.ZtwError, match=re.escape("backbone.milestones: 7 must be < epochs, which is 5")):
        check_study(config)


def test_a_joint_training_without_epochs_is_refused():
    config = changed("backbone", {"source": "file", "path": "x.pt"})
    config["data"]["validation_from"] = "test"
    with pytest.raises(
        ztw.ZtwError, match=r"ics.sets.depth_weighted.epochs: the key is missing \(backbone.ep"
    ):
        check_study(config)


def test_an_own_ensemble_takes_other_keys_from_the_section():
    config = changed(
        "ensembles", {"include_final": False, "sets": {"few": {"kind": "geometric", "samples": 5}}}
    )
    sets = check_study(config).ensembles.sets
    assert sets["few"].model_dump() == {
        "kind": "geometric",
        "samples": 5,
        "include_final": False,
        "fit_on": "train",
    }
    assert sets["uniform"].samples is None


def choices(section: type[Section], key: str) -> list:
    """Return the allowed values of a key."""
    annotation = section.model_fields[key].annotation
    return [name for part in (annotation, *get_args(annotation)) for name in get_args(part) or ()]


def test_a_study_knows_the_parts_in_the_tables():
    tables: dict[str, dict] = {
        "rule": RULES,
        "ensemble": ENSEMBLES,
        "head": HEADS,
        "thresholds": THRESHOLDS,
    }
    assert {kind: tuple(table) for kind, table in tables.items()} == BUILT_IN
    assert choices(IcSet, "pooling") == list(POOLINGS)
    assert choices(IcSet, "connection") == ztw.list_connections()
    assert choices(Recipe, "optimizer") == list(OPTIMIZERS)
    assert set(choices(Recipe, "schedule")) == set(SCHEDULES)
    assert choices(HardwareSettings, "precision") == list(PRECISIONS)
    assert choices(BackboneSettings, "shortcut") == list(SHORTCUTS)
    assert choices(BackboneSettings, "ic_features") == list(IC_FEATURES)
    assert choices(BackboneSettings, "init") == choices(IcSet, "init") == list(INITS)
    defaults = {key: field.default for key, field in BackboneBuild.model_fields.items()}
    assert defaults == dataclasses.asdict(BackboneOptions())
    assert {*OPTION_OWNERS, "input_size"} == set(BackboneBuild.model_fields)  # all architectures have it
    assert tuple(BACKBONES) == ARCHS
    patient = {name for name, rule in RULES.items() if not issubclass(rule, ThresholdRule)}
    assert patient == set(NO_THRESHOLD)
    assert {name for name, rule in RULES.items() if issubclass(rule, FittedRule)} == set(FITTED)
    trained = {field.name for field in dataclasses.fields(TrainingRecipe)}
    assert {*Recipe.model_fields, "compute", "compile", "cuda_graph", "frozen_dropout"} == trained
    assert {name for name, facts in DATASETS.items() if facts.channels == 1} == {"fashion_mnist", "digits"}


@pytest.mark.parametrize("arch", list(BACKBONES))
def test_blocks_equal_the_stages_of_the_backbone(arch):
    assert blocks(arch) == len(ztw.build_backbone(arch, size=32).stages)


def test_checking_is_quick_and_imports_no_torch():
    code = (
        "import sys, ztw.study.config as c\n"
        f"c.check_study(c.read_config({str(ROOT / 'config/systems.yaml')!r}))\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def without_validation(**changes) -> dict:
    """Return a study without a validation split, as in the released code."""
    config = changed("data", {"validation_fraction": 0})
    config["methods"] = {"ztw": {"ics": "cascade_detached", "ensemble": "geometric", "rule": "max_softmax"}}
    config["evaluation"], config["latency"] = {"protocols": ["paper"]}, {"batch_sizes": []}
    return {**config, **changes}


def test_a_study_may_train_on_all_images():
    assert check_study(without_validation()).data.validation_fraction == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evaluation": {"protocols": ["paper", "held-out"]}}, "evaluation.protocols: held-out"),
        ({"latency": {"batch_sizes": [1]}}, "set latency.batch_sizes to \\[\\]"),
        (
            {"methods": {"m": {"ics": "independent", "ensemble": "few", "rule": "entropy"}}},
            "fit_on: validation",
        ),
        (
            {"methods": {"m": {"ics": "cascade", "rule": "entropy", "thresholds": "risk_controlled"}}},
            "risk_controlled",
        ),
    ],
)
def test_what_needs_held_out_images_is_named(change, reason):
    with pytest.raises(ztw.ZtwError, match=f"validation_fraction: 0: there is no validation split.*{reason}"):
        check_study(without_validation(**change))
