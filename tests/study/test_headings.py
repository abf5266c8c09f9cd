"""Test that the headings of shipped studies list their differences from the released recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ztw.catalogue.datasets import DATASETS, IMAGE_FOLDER
from ztw.study.config import check_study, read_config
from ztw.study.settings import Study

CONFIG = Path(__file__).parents[2] / "config"
# Studies that follow the released recipe in part; config/paper.yaml has its values
IN_PART = [
    CONFIG / "systems.yaml",
    CONFIG / "ablations.yaml",
    *sorted(CONFIG.glob("reference/*.yaml")),
    *sorted(CONFIG.parent.glob("results/reference/*-*/config.yaml")),  # configs of published runs
]
IN_PART = [path for path in IN_PART if "logits" not in read_config(path)]  # those train nothing
# The paper has no recipe for fine-tuning timm's models
IN_PART = [path for path in IN_PART if not read_config(path)["archs"][0].startswith("timm/")]
RELEASED_SEEDS = 10
STATED = "# Differs from the released recipe"
AUGMENTATION = ("flip", "crop_padding", "colour_jitter", "mean", "std")
WITH_DROPOUT = ("vgg16_bn", "wide_resnet_32_4")
NAMES = {None: "of the images", "released": "its own"}
LIKE = {"cifar10-jpeg": "cifar10", "resnet20": "resnet56"}  # ours -> the paper's, to compare with


def heading(path: Path) -> str:
    """Return the comment at the start of a study."""
    lines = path.read_text().splitlines(keepends=True)
    return "".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def study_of(path: Path) -> Study:
    return check_study(read_config(path))


def settings(study: Study, dataset: str, arch: str) -> dict[str, Any]:
    """Return all keys that training and fits of a cell depend on, with their values."""
    cell = study.cells[dataset, arch]
    found: dict[str, Any] = {"precision": study.precision, "seeds": len(study.seeds)}
    found |= {
        f"ensembles.{key}": getattr(study.ensembles, key) for key in ("samples", "include_final", "fit_on")
    }
    found["ensembles.samples"] = study.ensembles.samples or "all"
    data = cell.data.model_dump(exclude={"root", "image_folders"})
    facts = DATASETS.get(dataset, IMAGE_FOLDER)
    data |= {key: getattr(facts, key) for key in AUGMENTATION if data[key] is None}
    if not data["colour_jitter"]:
        del data["jitter_order"]
    ics = cell.ics.sets["cascade_detached"].model_dump(exclude={"connection"})
    if arch not in WITH_DROPOUT:
        del ics["frozen_dropout"]
    for section, keys in (("data", data), ("backbone", cell.backbone.model_dump()), ("ics", ics)):
        found |= {f"{section}.{key}": value for key, value in keys.items()}
    for section in ("backbone", "ics"):
        milestones = found.pop(f"{section}.milestones")
        if found[f"{section}.schedule"] == "milestones":
            found[f"{section}.schedule"] = ("milestones", *milestones)
    if arch == "mobilenet":
        del found["backbone.init"]  # the released code has no initialiser for it
    return found


def written(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(written, value))
    if value in NAMES:
        return NAMES[value]
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def differences(study: Study) -> Iterator[str]:
    """Yield a line for every key whose value differs from the released recipe, with the architectures."""
    paper, lines = study_of(CONFIG / "paper.yaml"), dict[str, list[str]]()
    for dataset, arch in study.cells:
        released = settings(paper, LIKE.get(dataset, dataset), LIKE.get(arch, arch))
        released["seeds"] = RELEASED_SEEDS
        for key, value in settings(study, dataset, arch).items():
            if value != released[key]:
                line = f"{key}: {written(value)} (released: {written(released[key])})"
                lines.setdefault(line, []).append(arch)
    for line, archs in lines.items():
        yield line + ("" if len(archs) == len(study.cells) else f" on {', '.join(archs)}")


@pytest.mark.parametrize("path", IN_PART, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_heading_has_every_difference_from_the_released_recipe(path):
    expected = [f"#   {line}" for line in differences(study_of(path))]
    lines = heading(path).splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(STATED)]
    assert lines[start + 1 : start + 1 + len(expected)] == expected
    assert sum("(released: " in line for line in lines) == len(expected)


def test_equal_settings_are_not_differences():
    assert set(differences(study_of(CONFIG / "paper.yaml"))) == {"seeds: 3 (released: 10)"}


@pytest.mark.parametrize("name", ["paper.yaml", "paper-published.yaml", "imagenet.yaml"])
def test_the_papers_studies_compute_in_float32(name):
    """As in the released code. `auto` would be bfloat16 on most GPUs."""
    assert study_of(CONFIG / name).precision == "fp32"


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("paper.yaml", "three seeds (released: ten)"),
        ("paper-published.yaml", "three seeds (released: ten)"),
        ("imagenet.yaml", "three seeds (released: one)"),
    ],
)
def test_the_papers_studies_say_how_many_seeds_the_released_script_asks_for(name, seeds):
    assert seeds in heading(CONFIG / name)
    assert len(study_of(CONFIG / name).seeds) == 3


def test_the_manual_says_where_the_released_gradient_is_not_stopped():
    assert "does not stop it at the IC on VGG's fully connected layer" in (CONFIG / "README.md").read_text()


def test_the_systems_are_trained_as_by_their_authors():
    """SDN's schedule and blocks, and PABEE's optimizer: Adam's steps do not depend on a common factor of the losses."""
    sets = study_of(CONFIG / "systems.yaml").ics.sets
    ic_only, joint, pabee = (sets[name] for name in ("sdn_ic_only", "sdn_training", "depth_weighted"))
    assert (ic_only.epochs, ic_only.milestones, ic_only.optimizer, ic_only.lr) == (25, (15,), "adam", 1e-3)
    assert (joint.epochs, joint.milestones, joint.optimizer, joint.lr) == (100, (35, 60, 85), "sgd", 0.1)
    assert ic_only.placement == joint.placement == "sdn"
    assert (pabee.exit_weights, pabee.optimizer, pabee.weight_decay) == ("depth", "adam", 0)


@pytest.mark.parametrize("name", ["paper.yaml", "paper-published.yaml"])
def test_the_papers_studies_say_where_the_released_gradient_is_not_stopped(name):
    assert "VGG's fully connected" in heading(CONFIG / name)
