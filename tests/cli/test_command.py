"""Test the command `ztw` on tiny networks: what it prints, and one line for each error."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ztw
from ztw.cli import advise, doctor
from ztw.cli.app import app
from ztw.cli.images import Reader
from ztw.models.network import static_network

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = ("cat", "dog")


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command; return its exit status, output and errors."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def error(*arguments: object) -> str:
    """Run the command, which must fail with one line; return the line."""
    status, out, err = run(*arguments)
    assert (status, err.count("\n")) == (1, 1), out + err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").strip()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of train/ and test/ with dark cats and bright dogs, of two sizes."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 10)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(120 * label, 120 * label + 100, (8 + number % 2, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """A saved network of three exits. Half of the test images leave at the first one."""
    torch.manual_seed(0)
    layers = [layer for width in (3, 4, 4) for layer in (torch.nn.Conv2d(width, 4, 3), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16, 2))
    backbone = ztw.as_backbone(model, (3, 8, 8))
    network = ztw.build_network(backbone, head="pool", placement=[0, 1], progress=False)
    ((_, images),) = Reader((3, 8, 8), MEAN, STD).batches(sorted((photos / "test").rglob("*.png")), 100)
    threshold = float(network.eval()(images)[0].softmax(-1).amax(-1).median().detach())
    folder = tmp_path_factory.mktemp("network")
    ztw.save(network, folder, f"max_softmax {threshold}", class_names=CLASSES, normalisation=(MEAN, STD))
    return folder


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory) -> Path:
    """The backbone of the network, saved without exits."""
    network = static_network(ztw.load(folder)[0].backbone)
    target = tmp_path_factory.mktemp("small")
    ztw.save(network, target, class_names=CLASSES, normalisation=(MEAN, STD))
    return target


def test_predict_shows_what_infer_gives(folder, photos):
    status, out, _ = run("predict", photos / "test", "--network", folder, "--batch-size", "7")
    assert status == 0
    header, *rows, empty, summary = out.splitlines()
    assert header.split() == ["image", "class", "exit", "MACs", "saved", "time", "saved"]
    assert empty == ""
    paths = sorted((photos / "test").rglob("*.png"))
    network, rule = ztw.load(folder)
    assert rule is not None
    reader = Reader((3, 8, 8), MEAN, STD)
    ((_, images),) = reader.batches(paths, 100)
    result = network.infer(images, rule)
    assert len(result.exit_index.unique()) > 1
    saved = 1 - ztw.macs(network) / ztw.macs(network.backbone)
    for row, path, label, exit in zip(
        rows, paths, result.logits.argmax(-1), result.exit_index.tolist(), strict=True
    ):
        name, found, where, macs, _, time, unit = row.split()
        assert (name, found) == (str(path.relative_to(photos / "test")), CLASSES[label])
        assert (where, macs, unit) == (f"{exit + 1}/3", f"{100 * saved[exit]:.0f}", "%")
        assert -1000 < int(time) < 100
    mean = float(saved[result.exit_index].mean())
    assert summary.startswith(f"20 images: {100 * mean:.0f} % of the MACs and ")
    right = [
        CLASSES[label] == path.parent.name
        for label, path in zip(result.logits.argmax(-1), paths, strict=True)
    ]
    assert summary.endswith(f"Accuracy {5 * sum(right):.1f} %, with the folders' names as classes.")


def test_predict_takes_one_image_and_another_rule(folder, photos):
    status, out, _ = run(
        "predict", photos / "test/cat/0.png", "--network", folder, "--rule", "max_softmax 1.0"
    )
    assert status == 0
    assert re.search(r"/cat/0.png +(cat|dog) +3/3 ", out)
    assert "1 image: " in out


def test_predict_leaves_out_what_is_no_image(folder, photos, tmp_path):
    Image.open(photos / "test/cat/0.png").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    status, out, err = run("predict", tmp_path, "--network", folder)
    assert status == 0
    assert "good.png" in out
    assert err == f"note: left out: {tmp_path}/bad.png: unreadable image (cannot identify image file)\n"
    assert "Accuracy" not in out
    (tmp_path / "good.png").unlink()
    (tmp_path / "worse.png").write_text("x")
    assert run("predict", tmp_path, "--network", folder)[2].endswith(
        f"error: {tmp_path}: no image can be read\n"
    )


def test_greyscale_and_cropped_images(photos):
    grey = Reader((1, 8, 8), (0.0,), (1.0,)).pixels(photos / "test/dog/1.png")
    assert grey.shape == (1, 8, 8)
    assert Reader((3, 6, 6), MEAN, STD, crop=True).pixels(photos / "test/dog/1.png").shape == (3, 6, 6)
    with pytest.raises(ztw.ZtwError, match="8x6 pixels, must be square"):
        Reader((3, 8, 6), MEAN, STD, crop=True)
    with pytest.raises(ztw.ZtwError, match="4 channels, must be 1 or 3"):
        Reader((4, 8, 8), MEAN, STD)


def test_export_writes_what_the_runner_reads(folder, photos, tmp_path):
    status, out, _ = run("export", folder, tmp_path / "a.onnx", "--rule", "max_softmax 0.7")
    assert status == 0
    assert "float32, 3 exits, rule MaxSoftmax(threshold=0.7)" in out
    assert ztw.OnnxRunner(tmp_path / "a.onnx").rule == ztw.MaxSoftmax(0.7)
    status, out, _ = run("export", folder, tmp_path / "b.onnx", "--int8", photos / "train")
    assert status == 0
    assert "int8, 3 exits" in out
    assert "calibrated with 16 images; choose new thresholds" in out


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What the command gives to `advise`, which is replaced."""
    given: dict = {}

    def stub(model, train, held_out, **rest):
        given.update(rest, model=model, train=train, held_out=held_out)
        return SimpleNamespace(best=SimpleNamespace(name="exits", save=lambda folder: folder.mkdir()))

    monkeypatch.setattr(advise, "advise", stub)
    return given


def test_advise_asks_for_a_saved_network(folder, small, photos, tmp_path, asked):
    options = ("--smaller", small, "--allowed-loss", "0.02", "--epochs", "1", "--save", tmp_path / "runs")
    status, out, _ = run("advise", folder, photos, *options)
    assert status == 0
    assert out.endswith(f"\nsaved 'exits' in {tmp_path}/runs\n")
    assert (tmp_path / "runs").is_dir()
    assert list(asked["alternatives"]) == [small.name]
    assert (asked["allowed_loss"], asked["epochs"], asked["batch_size"]) == (0.02, 1, 1)
    assert (asked["held_out"].mean, asked["held_out"].std) == (MEAN, STD)
    assert isinstance(asked["model"], ztw.Backbone)


def test_advise_builds_a_model_by_its_name(photos, tmp_path, asked):
    trained = ztw.build_backbone("resnet8", num_classes=2, size=16)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    assert run("advise", "resnet8", photos, "--weights", tmp_path / "w.pth", "--size", "16")[0] == 0
    assert asked["model"].input_shape == (3, 16, 16)
    for name, value in asked["model"].state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    assert asked["train"].stored.shape == (16, 3, 16, 16)
    assert asked["held_out"].labels.tolist() == [0] * 10 + [1] * 10
    assert asked["train"].mean == (0.485, 0.456, 0.406)


def test_report_calls_the_report_of_a_study(monkeypatch, tmp_path):
    module = SimpleNamespace(write_report=lambda study, out: out or study / "report.html")
    monkeypatch.setitem(sys.modules, "ztw.reporting.report", module)
    assert run("report", "results/quick")[1] == "results/quick/report.html: open it in a browser\n"
    assert run("report", "results/quick", "--out", "a.html")[1] == "a.html: open it in a browser\n"


def database(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "mlflow.db") as store:
        store.execute("CREATE TABLE runs (run_uuid TEXT)")
        store.execute("INSERT INTO runs VALUES ('a')")
    store.close()
    return folder / "mlflow.db"


def test_doctor_says_what_it_finds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTW_DATA", str(tmp_path / "data"))
    (tmp_path / "data/imagenet").mkdir(parents=True)
    (tmp_path / "data/tiny-imagenet-200.zip").touch()
    monkeypatch.setattr(doctor, "missing", lambda extra: ["timm"] if extra == "timm" else [])
    database(tmp_path / "results/quick")
    status, out, _ = run("doctor")
    assert status == 0, out
    assert re.search(r"^ok +CPU +\S.*, \d+ cores", out, re.M)
    assert re.search(r"^ok +precision +auto computes in (bf16|fp32) on (cpu|cuda) ", out, re.M)
    assert f"{tmp_path}/data has tiny_imagenet, imagenet, digits\n" in out
    assert "not there: fashion_mnist, cifar10, cifar100, svhn (a study downloads what it needs)" in out
    assert re.search(r"^note +packages +timm: timm missing .*\n +-> pip install 'ztw\[timm\]'", out, re.M)
    assert "results/quick/mlflow.db: 1 run\n" in out


def test_doctor_ends_with_1_if_there_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database(tmp_path / "results/quick").write_text("x" * 5000)
    status, out, _ = run("doctor")
    assert status == 1
    assert re.search(
        r"^problem +MLflow +results/quick/mlflow.db is broken \(.*\)\n +-> run make repro", out, re.M
    )


def test_doctor_sees_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "_gpus_of_the_driver", lambda: 1)
    found = next(doctor._gpu())
    assert (found.kind, found.text) == ("problem", "the driver has 1 GPU(s), but torch cannot use them")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "predict PHOTOS --network none",
            "none/network.json: missing; give a folder that ztw.save has written",
        ),
        ("predict none.png --network NETWORK", "none.png: no such image or folder"),
        ("predict EMPTY --network NETWORK", "EMPTY: has no images (.jpg"),
        ("predict PHOTOS --network NETWORK --rule max_softmax", "needs a parameter"),
        ("predict PHOTOS --network NETWORK --rule patience=3", "unknown exit rule 'patience=3'"),
        ("predict PHOTOS --network NETWORK --budget 0.5", "has rules for none"),
        ("predict PHOTOS --network NETWORK --budget half", "--budget 'half': must be a number, or max"),
        ("predict PHOTOS --network NETWORK --budget max --rule x", "--rule and --budget: give only one"),
        ("predict PHOTOS --network NETWORK --device tpu", "device 'tpu': not available here"),
        ("predict PHOTOS --network SMALL", "the network has no exits but its last one"),
        ("export NETWORK EMPTY", "is a folder, must be a file"),
        ("export NETWORK out.onnx --int8 EMPTY", "has no images"),
        ("advise none PHOTOS", "none: must be the folder of a saved network, one of ztw.list_backbones()"),
        ("advise resnet8 PHOTOS", "resnet8: needs trained weights; give --weights FILE"),
        ("advise NETWORK PHOTOS --weights w.pth", "has its own weights; leave it out"),
        ("advise NETWORK EMPTY", "has no folder train/"),
        ("advise NETWORK OTHERS", "its classes are cat, dog; the folder's are bird"),
        ("report none", "none: has no tables"),
    ],
)
def test_an_error_is_one_line(arguments, message, folder, small, photos, tmp_path, monkeypatch):
    def write_report(study, out):
        raise ztw.ZtwError(f"{study}: has no tables")

    monkeypatch.setitem(sys.modules, "ztw.reporting.report", SimpleNamespace(write_report=write_report))
    (tmp_path / "empty").mkdir()
    for split in ("train", "test"):
        (tmp_path / "others" / split / "bird").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "others" / split / "bird/1.png")
    places = {"PHOTOS": photos, "NETWORK": folder, "SMALL": small, "EMPTY": tmp_path / "empty"}
    places["OTHERS"] = tmp_path / "others"
    given = [places.get(word, word) for word in arguments.split()]
    monkeypatch.chdir(tmp_path)
    assert message.replace("EMPTY", str(places["EMPTY"])) in error(*given)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    wanted = "ztw report: the package seaborn is not installed; pip install 'ztw[workflow]'"
    assert error("report", "results/quick") == wanted

    def fails(name):
        raise ModuleNotFoundError(name="altair.vegalite")

    monkeypatch.setattr("ztw.cli.app.need", lambda *given: None)
    monkeypatch.setattr("ztw.cli.app.import_module", fails)
    assert (
        error("report", "results/quick") == "the package altair is not installed; pip install 'ztw[workflow]'"
    )


def test_wrong_usage_is_explained_by_typer():
    status, _, err = run("predict", "photos")
    assert status == 2
    assert "Missing option '--network'" in err
    assert run("no-such-command")[0] == 2


def test_help_has_examples_and_imports_no_torch():
    code = "import sys\nfrom ztw.cli.app import app\nassert 'torch' not in sys.modules\napp(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "A first tour:" in done.stdout
    for command in ("doctor", "advise", "predict", "export", "report"):
        assert command in done.stdout
        shown = run(command, "--help")[1]
        assert re.search(rf"Examples?:\n    ztw {command}", shown)
    assert run("--version")[1] == f"ztw {ztw.__version__}\n"


def test_the_commands_of_the_documentation_run(folder, photos, tmp_path, monkeypatch):
    """On a tiny network; the first words of the output must be those in the documentation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(folder, "my-network")
    shutil.copytree(photos, "photos")
    module = SimpleNamespace(write_report=lambda study, out: out or study / "report.html")
    monkeypatch.setitem(sys.modules, "ztw.reporting.report", module)
    text = (Path(__file__).parents[2] / "docs/command.md").read_text()
    blocks = re.findall(r"```console\n\$ ztw (.*)\n([^$]*?)```", text)
    assert {command.split()[0] for command, _ in blocks} == {
        "doctor",
        "advise",
        "predict",
        "export",
        "report",
    }
    for command, output in blocks:
        status, out, err = run(*shlex.split(command))
        assert status == 0, command + err
        assert without_numbers(out) == without_numbers(output), command


def without_numbers(text: str) -> list[str]:
    """Return the first two words of a text, without numbers."""
    return [re.sub(r"[0-9.]+", "N", word) for word in text.split()[:2]]
