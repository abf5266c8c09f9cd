"""Test the job that prepares a data set: a record for each split, equal bytes for equal images."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

import ztw
from ztw.data.record import read_study_record
from ztw.data.splits import cell_splits
from ztw.jobs.job import Job
from ztw.jobs.prepare_dataset import PrepareDatasetSettings, prepare_dataset
from ztw.study.layout import Layout
from ztw.study.settings import DataSettings, FolderSettings


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name, grey in (("cat", 20), ("dog", 200)):
            for index in range(4):
                path = tmp_path / "mine" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9), (grey, index, 5 * index)).save(path)
    return tmp_path / "mine"


@pytest.fixture(params=[False, True], ids=["decoded", "streamed"])
def records(request, folder, tmp_path):
    """A function that runs the jobs of both splits, and returns the bytes of their records."""
    of_user = FolderSettings(path=str(folder), size=8, stream=request.param)
    settings = PrepareDatasetSettings(str(tmp_path / "root"), of_user, None)
    job = Job(Layout(tmp_path / "study"))

    def prepared() -> list[bytes]:
        for split in ("train", "test"):
            prepare_dataset(job, "mine", split, settings)
        return [job.layout.record("mine", split).read_bytes() for split in ("train", "test")]

    return prepared


def test_the_same_images_give_the_same_bytes(records, tmp_path):
    before = records()
    shutil.rmtree(tmp_path / "root")
    assert records() == before


def test_other_test_images_leave_the_training_record_as_it_is(records, folder):
    train, test = records()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "test/cat/0.png")
    (folder / "test/dog/3.png").unlink()
    assert records()[0] == train
    assert records()[1] != test
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "train/cat/0.png")
    assert records()[0] != train


def test_a_broken_test_image_is_found_before_training(records, folder):
    (folder / "test/cat/0.png").write_bytes((folder / "test/cat/0.png").read_bytes()[:-30])
    with pytest.raises(ztw.ZtwError, match=r"test/cat/0.png: unreadable image"):
        records()


def test_records_are_read_together_or_the_training_images_alone(records, tmp_path):
    records()
    files = [Layout(tmp_path / "study").record("mine", split) for split in ("train", "test")]
    train = read_study_record(files[:1])
    settings = DataSettings(validation_fraction=0.25)
    assert {name: len(part) for name, part in cell_splits(train, settings, 0).items()} == {
        "train": 6,
        "validation": 2,
    }
    assert len(cell_splits(read_study_record(files), settings, 0)["test"]) == 8
    assert train["class_names"] == ["cat", "dog"]
