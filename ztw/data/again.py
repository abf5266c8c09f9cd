"""Making the files of a prepared data set again, after the data root was cleaned."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ztw.progress import Report
from ztw.study.settings import FolderSettings


def make_again(record: dict[str, Any], report: Report) -> None:
    """Prepare the data set of a study's record again, in the same place; several jobs at once do it once.

    The module that does it is imported by its name, so that no job's code digest holds it: its files are then
    compared with the record's SHA-256s, and how they were made changes no result.
    """
    name, folder = record["name"], record["image_folder"]
    folders = {name: FolderSettings(**folder)} if folder else {}
    import_module("ztw.data.prepare").prepare_dataset(name, record["root"], folders, report)
