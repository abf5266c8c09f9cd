"""Test checkpoints: written completely or not at all, read strictly, every mismatch reported."""

from __future__ import annotations

import errno
import resource
import signal

import pytest
import torch

import ztw
from ztw.files import atomic, read_json, write_json
from ztw.models.checkpoints import load_checkpoint, save_checkpoint
from ztw.progress import describe, job_log
from ztw.tensors import write_tensors


@pytest.fixture
def saved(tmp_path):
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    save_checkpoint(tmp_path / "b.safetensors", backbone, {"arch": "resnet8", "num_classes": 5})
    return tmp_path / "b.safetensors", backbone


def test_round_trip(saved):
    path, backbone = saved
    other = ztw.build_backbone("resnet8", 5, 1, 10)
    facts = load_checkpoint(path, other, {"arch": "resnet8"})
    assert facts == {"arch": "resnet8", "num_classes": 5}
    own, loaded = backbone.state_dict(), other.state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own)


def test_a_truncated_checkpoint(saved):
    path, backbone = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ztw.ZtwError, match=r"b.safetensors: altered since it was written"):
        load_checkpoint(path, backbone, {})


def test_a_missing_or_broken_json(saved):
    path, backbone = saved
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ztw.ZtwError, match=r"b.json: altered since it was written"):
        load_checkpoint(path, backbone, {})
    path.with_suffix(".json").unlink()
    with pytest.raises(ztw.ZtwError, match=r"b.json: cannot be read"):
        load_checkpoint(path, backbone, {})


def test_another_architecture_or_class_count(saved):
    path, backbone = saved
    with pytest.raises(ztw.ZtwError, match=r"b.safetensors: arch is 'resnet8', expected 'resnet20'"):
        load_checkpoint(path, backbone, {"arch": "resnet20"})
    with pytest.raises(
        ztw.ZtwError, match=r"does not fit the network; shape: classifier.2.bias \(5,\) for \(7,\)"
    ):
        load_checkpoint(path, ztw.build_backbone("resnet8", 7, 1, 10), {})
    with pytest.raises(ztw.ZtwError, match=r"does not fit the network; missing: .*\.\.\."):
        load_checkpoint(path, ztw.build_backbone("resnet14", 5, 1, 10), {})


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})

    def full_disk():
        with atomic(tmp_path / "a.json") as scratch:
            scratch.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", "a.json")

    with pytest.raises(OSError, match="No space left") as caught:
        full_disk()
    assert describe(caught.value) == "a.json: No space left on device"
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.sha256", "a.json"]


def test_another_placement_or_mode_is_refused(tmp_path):
    network = ztw.build_network(ztw.build_backbone("resnet14"), placement=[0])
    save_checkpoint(
        tmp_path / "i.safetensors", network.heads, {"connection": "independent", "placement": [0]}
    )
    moved = ztw.build_network(network.backbone, placement=[1])  # same shapes, another block
    with pytest.raises(ztw.ZtwError, match=r"placement is \[0\], expected \[1\]"):
        load_checkpoint(tmp_path / "i.safetensors", moved.heads, {"placement": list(moved.placement)})


@pytest.fixture
def full_disk():
    """Let writes beyond 4 KB fail, as on a full disk."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors(path, {"a": torch.zeros(10000)}),
        lambda path: write_json(path, list(range(10000))),
    ],
    ids=["tensors", "json"],
)
def test_no_disk_space_ends_in_one_line(tmp_path, write):
    with pytest.raises(SystemExit), job_log(tmp_path / "log", "job"):
        write(tmp_path / "out")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"], "neither half a file nor scratch"
