"""The job that makes a data set ready: found, checked, decoded once or listed."""

from __future__ import annotations

from ztw.data import prepare
from ztw.files import data_root, write_json
from ztw.progress import Report
from ztw.study.settings import DataSettings


def prepare_dataset(name: str, data: DataSettings, output: str, report: Report) -> None:
    """Prepare a data set and write its record as JSON."""
    write_json(output, prepare.prepare_dataset(name, data_root(data.root), data.image_folders, report))
