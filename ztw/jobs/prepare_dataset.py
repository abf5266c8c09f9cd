"""The job that makes a data set ready: found, checked, decoded once or listed."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.data import prepare
from ztw.data.record import of_split
from ztw.files import data_root, write_json
from ztw.jobs.job import Job
from ztw.study.settings import FolderSettings


@dataclass(frozen=True)
class PrepareDatasetSettings:
    """Where the images are.

    Args:
        root: of all data sets.
        folder: a user's own folder of images, None for a built-in data set.
        stamp: of the files of that folder, or of a streamed data set.
    """

    root: str | None
    folder: FolderSettings | None
    stamp: str | None


def prepare_dataset(job: Job, dataset: str, split: str, settings: PrepareDatasetSettings) -> None:
    """Prepare a data set, both splits of it, and write the record of one as JSON.

    A record for each, so that other test images do not train anything again. Both are prepared all the same:
    an image that cannot be used is found before anything trains.
    """
    folders = {dataset: settings.folder} if settings.folder else {}
    record = prepare.prepare_dataset(dataset, data_root(settings.root), folders, job.report)
    write_json(job.layout.record(dataset, split), of_split(record, split))
