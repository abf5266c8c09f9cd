"""Prepare a data set for a study."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.data import prepare
from ztw.data.record import of_split
from ztw.files import data_root, write_json
from ztw.jobs.job import Job
from ztw.study.settings import FolderSettings


@dataclass(frozen=True)
class PrepareDatasetSettings:
    """Settings that the prepared data set depends on.

    Args:
        root: the folder of all data sets.
        folder: a user's image folder; None = a built-in or registered data set.
        stamp: stamp of the files of an image folder or a streamed data set.
    """

    root: str | None
    folder: FolderSettings | None
    stamp: str | None


def prepare_dataset(job: Job, dataset: str, split: str, settings: PrepareDatasetSettings) -> None:
    """Prepare both splits of a data set, and write the record of one split as JSON.

    Each split has its own record, so that changed test images train nothing again. Each job prepares both splits, so
    that an unusable image is reported before any training.
    """
    folders = {dataset: settings.folder} if settings.folder else {}
    record = prepare.prepare_dataset(dataset, data_root(settings.root), folders, job.report)
    write_json(job.layout.record(dataset, split), of_split(record, split))
