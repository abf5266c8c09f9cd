"""Test foreign weights: read safely, matched strictly, and checked after a download."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

import ztw
from ztw.models.import_weights import fetch_weights, load_foreign, read_foreign

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "best_prec1": 93.4},
        {"model": {"net": STATE}},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        {f"_orig_mod.module.{key}": value for key, value in STATE.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path, content, zipped):
    torch.save(content, tmp_path / "weights.th", _use_new_zipfile_serialization=zipped)
    assert same(read_foreign(tmp_path / "weights.th"), STATE)


def test_safetensors_whatever_its_name(tmp_path):
    save_file(STATE, tmp_path / "content")
    assert same(dict(sorted(read_foreign(tmp_path / "content").items(), reverse=True)), STATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not weights by name"),
        ({}, "holds a dict, not weights by name"),
        ({"epoch": 3}, "'epoch' is a int, must be a tensor"),
        (
            torch.nn.Linear(2, 2),
            "holds a torch.nn.modules.linear.Linear, which could run code",
        ),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(ztw.ZtwError, match=f"mine.pth: {re.escape(message)}"):
        read_foreign(tmp_path / "mine.pth")


NETWORK = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
WEIGHTS = NETWORK.state_dict()


def averaged() -> dict[str, object]:
    return torch.optim.swa_utils.AveragedModel(NETWORK).state_dict()


def of_torchvision() -> dict[str, object]:
    """Return a checkpoint as torchvision's reference scripts save it."""
    optimizer = torch.optim.SGD(NETWORK.parameters(), lr=0.1, momentum=0.9)
    NETWORK(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": WEIGHTS,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "epoch": 90,
        "args": argparse.Namespace(data_path="/data", lr=0.1, output_dir=Path("/out"), crops={1, 2}),
        "scaler": {"scale": 65536.0},
        "model_ema": averaged(),
    }


def of_lightning() -> dict[str, object]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": {
            **{f"model.{key}": value for key, value in WEIGHTS.items()},
            "criterion.weight": torch.ones(2),
            "train_acc.confmat": torch.zeros(2, 2),
        },
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "saved",
    [
        lambda: {"epoch": 3, "model_state_dict": WEIGHTS, "optimizer_state_dict": {"state": {}}},
        lambda: {"model_state": WEIGHTS, "best": numpy.float64(93.5), "when": numpy.int64(7)},
        lambda: {"model_ema": averaged(), "epoch": 1},
        averaged,
        of_torchvision,
        lambda: {"state_dict": {f"_orig_mod.{key}": value for key, value in WEIGHTS.items()}},
        lambda: {f"module._orig_mod.{key}": value for key, value in WEIGHTS.items()},
        lambda: {f"0._orig_mod.{key[2:]}" if key[0] == "0" else key: value for key, value in WEIGHTS.items()},
        lambda: {**WEIGHTS, "accuracy": numpy.float32(0.5), "epoch": 4, "arch": "resnet"},
        lambda: {"net": WEIGHTS, "confusion": numpy.eye(3), "history": defaultdict(list, {"loss": [1.0]})},
        lambda: {"student": WEIGHTS, "epoch": 3},
        lambda: {"model": {"state_dict": WEIGHTS, "epoch": 3}},
    ],
)
def test_checkpoints_as_people_save_them(tmp_path, saved, zipped):
    torch.save(saved(), tmp_path / "mine.pth", _use_new_zipfile_serialization=zipped)
    state = read_foreign(tmp_path / "mine.pth")
    assert list(state) == list(WEIGHTS)
    assert all(state[key].shape == value.shape for key, value in WEIGHTS.items())


def test_scalars_from_before_numpy_2(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"net": STATE, "best": numpy.float64(1.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert same(read_foreign(path), STATE)


def test_the_used_weights_are_reported(tmp_path):
    torch.save(of_torchvision(), tmp_path / "mine.pth")
    said: list[str] = []
    read_foreign(tmp_path / "mine.pth", said.append)
    assert said == [f"{tmp_path / 'mine.pth'}: uses the weights under 'model', not those under 'model_ema'"]
    torch.save({**STATE, "epoch": 3}, tmp_path / "mine.pth")
    read_foreign(tmp_path / "mine.pth", said.append)
    assert said[1:] == [f"{tmp_path / 'mine.pth'}: not used: 'epoch'"]


class Net(torch.nn.Module):
    """A class of a user's script."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": STATE, "student": STATE}, "holds weights under each of 'teacher', 'student'; save"),
        (
            {"net": STATE, "loss": Net()},
            r"holds a \S*Net, which could run code",
        ),
        (Net(), r"holds a \S*Net, which could run code"),
        ({"a.weight": torch.ones(2), "b": {"c": 3}}, "'b' is a dict, must be a tensor"),
        ({"a.weight": numpy.ones(2)}, "'a.weight' is a ndarray, must be a tensor"),
        ({0: torch.ones(2)}, "0 is a Tensor, must be a tensor with a name"),
        (numpy.ones(3), "holds a ndarray, not weights by name"),
    ],
)
def test_refused_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(ztw.ZtwError, match=f"mine.pth: {message}") as caught:
        read_foreign(tmp_path / "mine.pth")
    assert "\n" not in str(caught.value)


def test_no_code_of_a_file_runs(tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "attacked"),))

    torch.save({"state_dict": STATE, "args": Attack()}, tmp_path / "mine.pth")
    with pytest.raises(ztw.ZtwError, match=r"holds a \S+mkdir, which could run code"):
        read_foreign(tmp_path / "mine.pth")
    assert not (tmp_path / "attacked").exists()


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(STATE, tmp_path / "mine.pth")
    assert same(read_foreign("~/mine.pth"), STATE)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"12345678{", b"PK\3\4abcdefgh"])
def test_broken_files(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ztw.ZtwError, match=r"mine.pth: .*safetensors file") as caught:
        read_foreign(tmp_path / "mine.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(ztw.ZtwError, match=r"nope.pth: cannot be read"):
        read_foreign(tmp_path / "nope.pth")


def random_state(arch: str, **options) -> dict[str, torch.Tensor]:
    """Return random weights without BatchNorm's counters, as in older files."""
    state = ztw.build_backbone(arch, 5, 3, 16, **options).state_dict()
    return {key: torch.randn_like(value) for key, value in state.items() if "num_batches" not in key}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same weights under other names; only the last part of a name is equal."""
    return {f"layer{index}.{key.split('.')[-1]}": value for index, (key, value) in enumerate(state.items())}


@pytest.mark.parametrize("by_name", [True, False])
def test_weights_arrive_where_they_belong(by_name):
    backbone = ztw.build_backbone("resnet8", 5, 3, 16, shortcut="pad")
    state = random_state("resnet8", shortcut="pad")
    given = dict(reversed(state.items())) if by_name else renamed(state)
    assert load_foreign(backbone, given, "file") == ("by name" if by_name else "in order")
    own = backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert own["stages.0.1.conv1.1.num_batches_tracked"] == 0


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("prefix", ["model.", "net.", "model.encoder.", "whatever."])
def test_weights_below_a_prefix_with_other_entries_beside_them(prefix, by_name):
    backbone, state = ztw.build_backbone("resnet8", 5, 3, 16), random_state("resnet8")
    named = state if by_name else renamed(state)
    given = {"criterion.weight": torch.ones(5), **{prefix + key: value for key, value in named.items()}}
    given |= {"metric.confmat": torch.zeros(5, 5), "n_averaged": torch.tensor(3)}
    said: list[str] = []
    matched = load_foreign(backbone, given, "file", report=said.append)
    assert matched == ("by name" if by_name else "in order")
    own = backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    found = prefix if by_name else prefix.replace("encoder.", "")
    assert said == [
        f"file: uses the weights under {found!r}; not used:"
        " 3 entries: criterion.weight, metric.confmat, n_averaged"
    ]


def test_of_several_prefixes_the_usual_one_is_taken_else_the_user_chooses():
    def below(*prefixes: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}.{key}": value for prefix in prefixes for key, value in states[prefix].items()}

    states = {prefix: random_state("resnet8") for prefix in ("ema", "model", "student")}
    backbone = ztw.build_backbone("resnet8", 5, 3, 16)
    load_foreign(backbone, below("ema", "model"), "file")
    assert torch.equal(backbone.state_dict()["classifier.2.bias"], states["model"]["classifier.2.bias"])
    with pytest.raises(
        ztw.ZtwError, match=r"fits resnet8 under each of 'ema.', 'student.'; save the weights"
    ):
        load_foreign(backbone, below("ema", "student"), "file")


@pytest.mark.parametrize("by_name", [True, False])
def test_weights_of_another_number_of_classes(by_name):
    backbone = ztw.build_backbone("resnet8", 5, 3, 16)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = random_state("resnet8")
    state |= {"classifier.2.weight": torch.ones(1000, 64), "classifier.2.bias": torch.ones(1000)}
    given = state if by_name else renamed(state)
    with pytest.raises(
        ztw.ZtwError, match=r"^file: its last layer has 1000 classes, not 5; .*backbone.epochs"
    ):
        load_foreign(backbone, given, "file")
    assert same(backbone.state_dict(), before)
    said: list[str] = []
    load_foreign(backbone, given, "file", new_last_layer=True, report=said.append)
    assert said == [
        "file: its last layer has 1000 classes, not 5; replaced by a new last layer"
        " (classifier.2.weight, classifier.2.bias)"
    ]
    own = backbone.state_dict()
    for key, value in state.items():
        assert torch.equal(own[key], before[key] if key.startswith("classifier.2") else value)


def test_another_width_is_not_taken_for_another_number_of_classes():
    state = random_state("resnet8")
    state |= {"classifier.2.weight": torch.ones(1000, 32), "classifier.2.bias": torch.ones(1000)}
    with pytest.raises(ztw.ZtwError, match="does not fit resnet8"):
        load_foreign(ztw.build_backbone("resnet8", 5, 3, 16), state, "file", new_last_layer=True)


def refused(state: dict[str, torch.Tensor]) -> str:
    """Return the error for a resnet8 with convolutional shortcuts, and check that the network is unchanged."""
    backbone = ztw.build_backbone("resnet8", 5, 3, 16)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ztw.ZtwError) as caught:
        load_foreign(backbone, state, "their.th")
    assert same(backbone.state_dict(), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_architecture():
    message = refused(renamed(random_state("resnet8", shortcut="pad")))
    assert message.startswith("their.th: does not fit resnet8, 37 entries for 47; entry 26: layer25.weight ")
    assert "layer25.weight (64, 32, 3, 3) for stages.1.shortcut.0.weight (32, 16, 1, 1), " in message
    assert message.endswith(" more")
    assert "47 entries for 47; entry 46: layer45.weight (9, 64) for classifier.2.weight (5, 64)" in refused(
        renamed(random_state("resnet8") | {"classifier.2.weight": torch.zeros(9, 64)})
    )


def test_the_last_part_of_a_name_counts():
    state = renamed(random_state("resnet8"))
    items = list(state.items())
    items[1], items[2] = items[2], items[1]  # a BatchNorm's weight and bias have equal shapes
    assert refused(dict(items)).endswith("entry 2: layer2.bias (16,) for stages.0.0.0.1.weight (16,), entry "
        "3: layer1.weight (16,) for stages.0.0.0.1.bias (16,)")  # fmt: skip


def test_entries_too_few_or_many():
    state = renamed(random_state("resnet8"))
    assert refused({**state, "more.bias": torch.zeros(3)}) == (
        "their.th: does not fit resnet8, 48 entries for 47; 1 surplus: more.bias"
    )
    del state["layer46.bias"]
    assert refused(state).endswith("46 entries for 47; 1 missing: classifier.2.bias")


def test_names_that_mostly_agree():
    state = random_state("resnet8") | {"extra.weight": torch.zeros(2)}
    del state["classifier.2.bias"]
    state["classifier.2.weight"] = torch.zeros(9, 64)
    assert refused(state) == (
        "their.th: does not fit resnet8, 47 entries for 47; 1 missing: classifier.2.bias; "
        "1 surplus: extra.weight; 1 shape: classifier.2.weight (9, 64) for (5, 64)"
    )


def test_fetch_weights(tmp_path):
    source = tmp_path / "their model.th"
    torch.save(STATE, source)
    url, sha256 = source.as_uri(), hashlib.sha256(source.read_bytes()).hexdigest()
    said: list[str] = []
    path = fetch_weights(url, sha256.upper(), tmp_path / "root", said.append)
    assert path == tmp_path / f"root/weights/{sha256[:12]}-their model.th"
    assert said == [f"downloading {url}"]
    assert same(read_foreign(path), STATE)
    source.unlink()
    assert fetch_weights(url, sha256, tmp_path / "root", said.append) == path
    assert len(said) == 1, "nothing is downloaded twice"
    path.write_bytes(b"altered")
    with pytest.raises(ztw.ZtwError, match=r"model.th: altered or truncated .*; delete it"):
        fetch_weights(url, sha256, tmp_path / "root")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/%00%0Ab'$(x).th", "__b___x_.th"),
        ("..", ".."),
        ("", "file"),
        ("%2e%2e%2fx", "x"),
        ("y" * 300, "y" * 100),
    ],
)
def test_a_file_s_name_is_plain_whatever_its_url(tmp_path, monkeypatch, path, name):
    monkeypatch.setattr("ztw.models.import_weights.download", lambda url, target, *_: target)
    url = f"https://example.org/{path}"
    assert fetch_weights(url, "ab" * 32, tmp_path) == tmp_path / "weights" / f"abababababab-{name}"


def test_downloads_that_fail(tmp_path):
    (tmp_path / "file.th").write_bytes(b"something else")
    with pytest.raises(
        ztw.ZtwError, match=r"file.th: not the expected file \(SHA-256 .*, expected 000000000000"
    ):
        fetch_weights((tmp_path / "file.th").as_uri(), "0" * 64, tmp_path)
    with pytest.raises(ztw.ZtwError, match=r"none.th: cannot be downloaded to .* \(.*No such file"):
        fetch_weights((tmp_path / "none.th").as_uri(), "0" * 64, tmp_path)
    with pytest.raises(ztw.ZtwError, match=r"^my/file.th: .* URL"):
        fetch_weights("my/file.th", "0" * 64, tmp_path)
    assert list((tmp_path / "weights").iterdir()) == [], "nothing half written is left"
