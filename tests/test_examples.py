"""Run the examples on small data."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import ztw
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_cnn(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    point = example("own_cnn").main(tmp_path / "net", samples=1200, epochs=4)
    assert point.relative_cost <= 0.7
    assert point.accuracy > 0.6
    printed = capsys.readouterr().out
    assert "test images: accuracy" in printed
    assert "100.0% of the test images leave at the same exit" in printed
    network, rule = ztw.load(tmp_path / "net")  # in a process of its own: tests/evaluation/test_saving.py
    assert rule is not None
    assert rule == point.rule
    assert rule is not None
    assert network.class_names is not None
    assert "row 3" in network.class_names
    assert network.infer(torch.zeros(2, 1, 16, 16), rule).exit_index.shape == (2,)


def test_torchvision_folder(tmp_path):
    for split, label, number in (
        (s, c, n) for s in ("train", "held_out") for c in range(2) for n in range(6)
    ):
        place = tmp_path / "images" / split / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        image = torch.randint(100, (3, 40, 40), generator=torch.Generator().manual_seed(number)) + 100 * label
        Image.fromarray(image.byte().permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    main = example("torchvision_folder").main
    point = main(tmp_path / "images", tmp_path / "net", size=32, epochs=1, weights=None)
    network, rule = ztw.load(tmp_path / "net")
    assert rule is not None
    assert rule == point.rule
    assert network.class_names == ("class0", "class1")
    assert network.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert len(network.backbone.stages) == 8


def test_timm_vit(tmp_path, capsys):
    point = example("timm_vit").main(tmp_path / "net", samples=64, epochs=0.5)
    if point is None:
        assert capsys.readouterr().err == "timm is not installed: pip install timm\n"
        return
    network, rule = ztw.load(tmp_path / "net")
    assert rule is not None
    assert rule == point.rule
    assert len(network.backbone.stages) == 12


def test_advise(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ztw.evaluation.turn_times.SECONDS", 0.1)
    advice = example("advise").main(tmp_path / "net", epochs=1, width=8, exit_epochs=1)
    kinds = {one.kind for one in advice.options if not one.reason}
    assert kinds >= {"model", "smaller network", "exits", "cascade"}
    assert advice.best.name in {one.name for one in advice.options}
    printed = capsys.readouterr().out
    assert advice.sentence.split(":")[0] in printed
    assert "classes of five images" in printed


def test_numpy_logits(tmp_path, monkeypatch):
    """The files are those that the study beside the example names."""
    assert "torch" not in (EXAMPLES / "numpy_logits.py").read_text()
    study = check_study(read_config(EXAMPLES / "numpy_logits.yaml"))
    assert study.logits is not None
    monkeypatch.chdir(tmp_path)
    example("numpy_logits").main(Path("data/logits"), count=300)
    found = {
        (name, seed): ztw.load_predictions(of_set.file(Cell("made-up", "mine", seed)))
        for name, of_set in study.logits.sets.items()
        for seed in study.seeds
    }
    accuracy = ztw.exit_accuracy(*found["exits", 0].test)
    assert (accuracy.diff() > 0).all()
    assert ztw.exit_accuracy(*found["small", 0].test).shape == (1,)
    for other in found.values():
        assert torch.equal(other.test[1], found["exits", 0].test[1])
        assert other.base_cost == found["exits", 0].base_cost


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "my_parts"]
)
def test_every_example_says_what_it_is(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    monkeypatch.syspath_prepend(str(EXAMPLES))  # Python does this for a script
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
