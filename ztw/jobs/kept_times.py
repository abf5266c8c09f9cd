"""Store the measured times of every method, and use them again until something changes that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import read_json, sha256, write_json
from ztw.jobs.cell import CellNetworks
from ztw.progress import Report
from ztw.study.layout import metadata

# Keys of an ensemble's JSON that decide its output; the other keys describe how it was fitted
ENSEMBLE = ("kind", "exits", "num_classes", "include_final")


@dataclass
class KeptTimes:
    """Store the measured times of a cell's methods, one file per method, with its SHA-256.

    common: everything that the times of all methods depend on ("code", "machine", ...), as JSON values.
    """

    networks: CellNetworks
    common: Mapping[str, Any]

    def read(self, name: str, report: Report) -> dict[str, Any] | None:
        """Read the times of a method; report and return None if the code, settings or weights have changed."""
        path, of = self._file(name), self._of(name)
        if not path.exists():
            return None
        try:
            content = read_json(path, "the method is timed again")
        except ZtwError as error:
            report(str(error))
            return None
        if other := sorted(key for key in {*of, *content["of"]} if of.get(key) != content["of"].get(key)):
            report(f"{name}: timed again, because {' and '.join(other)} changed")
            return None
        return content["found"]

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """Write the times of a method."""
        write_json(self._file(name), {"of": self._of(name), "found": found})

    def _file(self, name: str) -> Path:
        return self.networks.layout.method_latency(self.networks.cell, name)

    def _of(self, name: str) -> dict[str, str]:
        """Return digests of everything that the times of a method depend on."""
        method = self.networks.methods[name]
        depends_on = {**self.common, "method": method.model_dump(), **_network(self.networks, name)}
        return {name: _digest(value) for name, value in depends_on.items()}


def _network(networks: CellNetworks, name: str) -> dict[str, Any]:
    """Return the settings of a method's network and of the backbone, and the SHA-256 of their weights.

    Also the SHA-256 of the validation logits, because they decide the thresholds.
    """
    layout, cell, method = networks.layout, networks.cell, networks.methods[name]
    homes = [networks, *networks.members(name)]
    builds = [home.build.model_dump() for home in homes]
    read = [layout.backbone(home.cell) for home in homes]
    ensemble = None
    if not method.static:
        read += networks.predictions_files(name, "validation")
    if method.ics:
        builds.append(networks.sets[method.ics].model_dump())
        read.append(layout.ics(cell, method.ics))
    if method.ensemble is not None:
        weights = layout.ensemble(cell, networks.source(name), method.ensemble)
        read.append(weights)
        saved = read_json(metadata(weights))
        ensemble = {key: saved[key] for key in ENSEMBLE}
    return {"network": [[home.arch for home in homes], builds, ensemble], "weights": [*map(sha256, read)]}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
