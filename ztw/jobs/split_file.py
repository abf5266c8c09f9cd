"""Write the predictions of one split, as the jobs of a cell read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.files import write_json
from ztw.models.checkpoints import versions
from ztw.study.layout import metadata
from ztw.tensors import write_tensors


def write_split(path: Path, logits: Tensor, labels: Tensor, described: Mapping[str, Any]) -> None:
    """Write logits (K, N, C) and labels (N,), and their metadata in a JSON beside them."""
    write_tensors(path, {"logits": logits, "labels": labels})
    write_json(metadata(path), {**described, "versions": versions()})
