"""Somebody else's weights: read safely, matched strictly, downloaded checked."""

from __future__ import annotations

import hashlib
import re

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
        ({"epoch": 3}, "'epoch' is a int; expected weights by name alone"),
        (
            torch.nn.Linear(2, 2),
            "neither a safetensors file nor a torch file of tensors alone; a pickled model",
        ),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(ztw.ZtwError, match=f"mine.pth: {re.escape(message)}"):
        read_foreign(tmp_path / "mine.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"12345678{", b"PK\3\4abcdefgh"])
def test_broken_files(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ztw.ZtwError, match=r"mine.pth: .*safetensors file") as caught:
        read_foreign(tmp_path / "mine.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(ztw.ZtwError, match=r"nope.pth: cannot be read"):
        read_foreign(tmp_path / "nope.pth")


def random_state(arch: str, **options) -> dict[str, torch.Tensor]:
    """Weights of another network, without BatchNorm's counters, as older files are."""
    state = ztw.build_backbone(arch, 5, 3, 16, **options).state_dict()
    return {key: torch.randn_like(value) for key, value in state.items() if "num_batches" not in key}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with names that share nothing but their last part."""
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


def refused(state: dict[str, torch.Tensor]) -> str:
    """The error for a resnet8 with convolved shortcuts, which must be left as it was."""
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
    items[1], items[2] = items[2], items[1]  # a BatchNorm's weight and bias have one shape
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
    with pytest.raises(ztw.ZtwError, match=r"model.th: altered or truncated .*; delete it to fetch it again"):
        fetch_weights(url, sha256, tmp_path / "root")


def test_downloads_that_fail(tmp_path):
    (tmp_path / "file.th").write_bytes(b"something else")
    with pytest.raises(
        ztw.ZtwError, match=r"file.th: not the expected file \(SHA-256 .*, expected 000000000000"
    ):
        fetch_weights((tmp_path / "file.th").as_uri(), "0" * 64, tmp_path)
    with pytest.raises(ztw.ZtwError, match=r"none.th: cannot be downloaded to .* \(.*No such file"):
        fetch_weights((tmp_path / "none.th").as_uri(), "0" * 64, tmp_path)
    with pytest.raises(ztw.ZtwError, match=r"^my/file.th: not a URL"):
        fetch_weights("my/file.th", "0" * 64, tmp_path)
    assert list((tmp_path / "weights").iterdir()) == [], "nothing half written is left"
