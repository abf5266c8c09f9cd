"""A study that is finished and unchanged is known again without starting Snakemake: its tables come at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from ztw.catalogue.datasets import DATASETS
from ztw.files import read_json, write_text
from ztw.reporting.mlflow_names import UNDELIVERED
from ztw.study.plugins import plugin_files
from ztw.study.settings import Study

ROOT = Path(__file__).parents[1]


class Finished:
    """The mark of a finished study, in its folder: stamps (name, size, time) of what it was made of and left.

    Whatever differs, and a study with files of the user's own (images, weights), is Snakemake's to judge.
    """

    def __init__(self, config: str, study: Study, folder: Path) -> None:
        self.folder, self.mark = folder, folder / ".finished"
        code = (path for part in ("ztw", "workflow") for path in (ROOT / part).rglob("*") if path.is_file())
        sources = (path for path in code if path.suffix != ".pyc")
        plugins = (path for name in study.plugins for path in plugin_files(name))
        # before the run: what is edited while it computes is newer than its results
        self.sources = _stamps(
            [Path(config), ROOT / "environment.yml", Path(sys.executable), *sources, *plugins]
        )
        self.asks = bool(
            study.data.image_folders
            or any(cell.backbone.path for cell in study.backbones.values())
            or any(name in DATASETS and DATASETS[name].streamed for name in study.datasets)
        )

    def __bool__(self) -> bool:
        """Whether nothing has changed since `note`."""
        return not self.asks and self.mark.exists() and self.mark.read_text() == self._now()

    def note(self) -> None:
        """The study is finished."""
        write_text(self.mark, self._now())

    def _now(self) -> str:
        left = (path for path in self.folder.rglob("*") if path.is_file() and path != self.mark)
        return f"{self.sources}\n{_stamps(path for path in left if 'logs' not in path.parts)}\n"


def undelivered(study: Path) -> dict[Path, str]:
    """The files of cells whose runs are not in MLflow yet, and what was said of its server."""
    files = {path: read_json(path) for path in sorted(study.rglob("seed*/runs.json"))}
    return {path: facts[UNDELIVERED] for path, facts in files.items() if UNDELIVERED in facts}


def _stamps(paths: Iterable[Path]) -> str:
    digest = sha256()
    for path in sorted(paths):
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
