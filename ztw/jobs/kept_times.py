"""The times of every method in a file of its own: what was measured once counts until something decides otherwise."""

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
from ztw.study.settings import MethodSettings

# of an ensemble's JSON: what its weights mean; the rest is about how it was fitted
ENSEMBLE = ("kind", "exits", "num_classes", "include_final")


@dataclass
class KeptTimes:
    """The times of a cell's methods, each in a file of its own, sealed with its SHA-256.

    common: what decides the times of all methods ("code", "machine", ...), as JSON knows it.
    """

    networks: CellNetworks
    common: Mapping[str, Any]

    def read(self, name: str, method: MethodSettings, report: Report) -> dict[str, Any] | None:
        """What was kept of a method; None, and a line about it, where it is of other code, settings, weights, ..."""
        path, of = self._file(name), self._of(method)
        if not path.exists():
            return None
        try:
            content = read_json(path, "the method is timed again")
        except ZtwError as error:
            report(str(error))
            return None
        if other := sorted(key for key in {*of, *content["of"]} if of.get(key) != content["of"].get(key)):
            report(f"{name}: kept times are of other {' and '.join(other)}; timed again")
            return None
        return content["found"]

    def write(self, name: str, method: MethodSettings, found: Mapping[str, Any]) -> None:
        """Keep the times of a method."""
        write_json(self._file(name), {"of": self._of(method), "found": found})

    def _file(self, name: str) -> Path:
        return self.networks.layout.method_latency(self.networks.cell, name)

    def _of(self, method: MethodSettings) -> dict[str, str]:
        """All that decides the times of a method, a digest each."""
        decides = {**self.common, "method": method.model_dump(), **_network(self.networks, method)}
        return {name: _digest(value) for name, value in decides.items()}


def _network(networks: CellNetworks, method: MethodSettings) -> dict[str, Any]:
    """How the networks of a method and of the backbone beside it are built, and what is in the files of their weights.

    The validation logits are among them, because they decide the thresholds.
    """
    layout, cell, home = networks.layout, networks.cell, networks.home(method)
    builds = [networks.build.model_dump(), home.build.model_dump()]
    read = [layout.backbone(cell), layout.backbone(home.cell)]
    ensemble = None
    if not method.static:
        builds.append(networks.sets[method.ics].model_dump())
        read += [layout.ics(cell, method.ics), layout.predictions(cell, method.ics, "validation")]
    if method.ensemble is not None:
        weights = layout.ensemble(cell, method.ics, method.ensemble)
        read.append(weights)
        facts = read_json(metadata(weights))
        ensemble = {key: facts[key] for key in ENSEMBLE}
    return {"network": [cell.arch, home.cell.arch, builds, ensemble], "weights": [*map(sha256, read)]}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
