"""The job that makes a data set ready: found, checked, decoded once or listed."""

from __future__ import annotations

from ztw.data import prepare
from ztw.data.record import of_split
from ztw.files import data_root, write_json
from ztw.progress import Report
from ztw.study.settings import DataSettings


def prepare_dataset(name: str, split: str, data: DataSettings, output: str, report: Report) -> None:
    """Prepare a data set, both splits of it, and write the record of one as JSON.

    A record for each, so that other test images do not train anything again. Both are prepared all the same:
    an image that cannot be used is found before anything trains.
    """
    record = prepare.prepare_dataset(name, data_root(data.root), data.image_folders, report)
    write_json(output, of_split(record, split))
