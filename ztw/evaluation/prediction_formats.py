"""The three formats of files of logits: safetensors, npz and parquet, each as arrays and texts by name."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ztw.errors import ZtwError, reason
from ztw.extras import need
from ztw.files import atomic
from ztw.tensors import as_tensor

SPLITS = ("train", "validation", "test")
ARRAYS = [f"{split}_{part}" for split in SPLITS for part in ("logits", "labels")]
# Texts of a file: metadata of safetensors and parquet; arrays of npz, those of NUMBERS as numbers
NUMBERS = ("cost", "base_cost")  # as JSON
TEXTS = (*NUMBERS, "times", "origin")
# What readers raise for a file of another kind
ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError)
EXIT = re.compile("exit_([0-9]+)")
Arrays = dict[str, Tensor]  # "<split>_logits" (K, N, C), "<split>_labels" (N,)
Texts = dict[str, str]  # a name of TEXTS -> text; numbers are JSON


class Format(NamedTuple):
    """How a format is written and read."""

    write: Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], None]
    read: Callable[[Path], tuple[Arrays, Texts]]


def write_file(path: Path, arrays: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write a file in the format of its suffix, atomically; raise ZtwError if that fails."""
    write = format_of(path).write
    try:
        with atomic(path) as scratch:
            write(scratch, arrays, texts)
    except (OSError, safetensors.SafetensorError) as error:
        raise ZtwError(f"{path}: cannot be written ({reason(error, path)})") from error


def read_file(path: Path) -> tuple[Arrays, Texts]:
    """Read a file in the format of its suffix; raise ZtwError if it is missing or of another format."""
    read = format_of(path).read
    if not path.is_file():
        raise ZtwError(f"{path}: no such file")
    try:
        return read(path)
    except ERRORS as error:
        raise ZtwError(f"{path}: is no {path.suffix[1:]} file of logits ({reason(error, path)})") from error


def format_of(path: Path) -> Format:
    """Return the format of a path's suffix; raise ZtwError for another one, or if its package is missing."""
    if path.suffix not in FORMATS:
        raise ZtwError(f"{path}: a file of logits must end in {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        need(str(path), "workflow", "pyarrow")
    return FORMATS[path.suffix]


def _write_safetensors(path: Path, arrays: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    path.touch()
    mode = path.stat().st_mode  # safetensors would let only the owner read the file
    save_file({name: array.contiguous() for name, array in arrays.items()}, path, dict(texts))
    path.chmod(mode)


def _read_safetensors(path: Path) -> tuple[Arrays, Texts]:
    with safetensors.safe_open(path, "pt") as stream:
        texts = stream.metadata() or {}
    return _parted(load_file(path), texts)


def _write_npz(path: Path, arrays: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    given = {name: array.numpy() for name, array in arrays.items()}
    given |= {name: np.asarray(json.loads(text) if name in NUMBERS else text) for name, text in texts.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **given)


def _read_npz(path: Path) -> tuple[Arrays, Texts]:
    with path.open("rb") as file:  # NumPy would leave a broken file open
        stored = np.load(file, allow_pickle=False)  # noqa: TID251
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("holds a single array")
        return _parted({name: stored[name] for name in stored.files}, {})


def _parted(arrays: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[Arrays, Texts]:
    """Divide what a file holds by name; texts and costs may be arrays, too."""
    tensors: Arrays = {}
    found = {name: texts[name] for name in TEXTS if name in texts}
    for name, array in arrays.items():
        if name in ARRAYS:
            tensors[name] = as_tensor(array, name)
        elif name in TEXTS:
            value = array.tolist()
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return tensors, found


def _write_parquet(path: Path, arrays: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write one row per sample: split, label, and the logits of each exit as a list."""
    import pyarrow as pa
    from pyarrow import parquet

    schema, writer = None, None
    try:
        for split in SPLITS:
            if f"{split}_logits" not in arrays:
                continue
            logits, labels = (arrays[f"{split}_{part}"] for part in ("logits", "labels"))
            columns = {"split": pa.array([split] * len(labels)), "label": pa.array(labels.numpy())}
            for exit, rows in enumerate(logits, 1):
                flat = pa.array(rows.numpy().reshape(-1))
                columns[f"exit_{exit}"] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
            table = pa.table(columns)
            if writer is None:
                schema = table.schema.with_metadata(dict(texts))
                writer = parquet.ParquetWriter(path, schema)
            writer.write_table(table.cast(schema))
    finally:
        if writer is not None:
            writer.close()


def _read_parquet(path: Path) -> tuple[Arrays, Texts]:
    from pyarrow import compute, parquet

    table = parquet.read_table(path)
    exits = sorted(int(match[1]) for match in map(EXIT.fullmatch, table.column_names) if match)
    if missing := {"split", "label"} - set(table.column_names):
        raise ValueError(f"has no column {' and no column '.join(sorted(missing))}")
    if exits != list(range(1, len(exits) + 1)) or not exits:
        raise ValueError(f"must have columns exit_1, exit_2, ...; has {', '.join(table.column_names)}")
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    arrays: Arrays = {}
    for split in SPLITS:
        rows = table.filter(compute.equal(table["split"], split))
        if len(rows):
            logits = [_of_lists(rows[f"exit_{exit}"].combine_chunks(), exit) for exit in exits]
            if len({each.shape for each in logits}) > 1:
                raise ValueError(f"{split}: the exits' lists have different lengths")
            arrays[f"{split}_logits"] = torch.stack(logits)
            arrays[f"{split}_labels"] = as_tensor(rows["label"].to_numpy(), "label")
    return arrays, {name: metadata[name] for name in TEXTS if name in metadata}


def _of_lists(column: Any, exit: int) -> Tensor:
    """Return the rows (N, C) of a column of lists."""
    from pyarrow import compute, types

    lists = (
        types.is_list(column.type)
        or types.is_large_list(column.type)
        or types.is_fixed_size_list(column.type)
    )
    lengths = compute.unique(compute.list_value_length(column)).to_pylist() if lists else []
    if len(lengths) != 1 or lengths[0] is None:
        raise ValueError(f"exit_{exit}: every row must have one number per class")
    return as_tensor(column.flatten().to_numpy(zero_copy_only=False), f"exit_{exit}").view(-1, lengths[0])


FORMATS = {
    ".safetensors": Format(_write_safetensors, _read_safetensors),
    ".npz": Format(_write_npz, _read_npz),
    ".parquet": Format(_write_parquet, _read_parquet),
}
