"""Read weights from files of other projects. No code of the file runs."""

from __future__ import annotations

import argparse
import codecs
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.tensors import read_tensors

# Keys under which training scripts save the weights. Averaged weights are used only if there are no others.
NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
AVERAGED = ("model_ema", "ema_state_dict", "state_dict_ema", "ema")
PREFIXES = ("module.",)  # DataParallel and AveragedModel put it before every name
COMPILED = "_orig_mod."  # torch.compile puts it before the names in a compiled module
AVERAGES = "n_averaged"  # a counter of AveragedModel, not a weight
SCALARS = (int, float, str, np.generic, type(None))  # saved beside the weights: epochs, accuracies


def _allowed() -> Iterator[Callable[..., Any] | tuple[Any, str]]:
    """Yield the types that a file may hold beside tensors and containers. Unpickling them runs no code."""
    scalar = np.float64(0).__reduce__()[0]
    rebuilt = np.zeros(0).__reduce__()[0]
    yield from (argparse.Namespace, types.SimpleNamespace, set, frozenset, codecs.encode)
    yield from ((_plain_dict, "collections.defaultdict"), list, dict, int, float)
    yield from (np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__))
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        yield from ((scalar, f"{core}.multiarray.scalar"), (rebuilt, f"{core}.multiarray._reconstruct"))
    for module in ("pathlib", "pathlib._local"):
        yield from ((pathlib.PurePosixPath, f"{module}.{kind}Path") for kind in ("Posix", "PurePosix"))
        yield from ((pathlib.PureWindowsPath, f"{module}.{kind}Path") for kind in ("Windows", "PureWindows"))
    for place in ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"):
        yield (dict, f"{place}.AttributeDict")
    yield (dict, "pytorch_lightning.utilities.parsing.AttributeDict")


def _plain_dict(factory: type | None = None) -> dict[Any, Any]:
    """Stand in for a defaultdict, which the unpickler cannot fill."""
    return {}


def read_foreign(path: Path | str, report: Report = lambda text: None) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch file, without running code of the file.

    Wrappers of training scripts are removed, e.g. {"state_dict": ...} or names with the prefix "module.".

    Args:
        path: the file.
        report: receives a line about a choice between several state dicts, and about entries that are not used.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        ZtwError: for any other file, and for a file without weights.
    """
    path = Path(path).expanduser()
    content = read_tensors(path, "is it the right file?") if _is_safetensors(path) else _read_torch(path)
    state = _tensors(_unwrapped(content, path, report), path, report)
    state = {key.replace(COMPILED, ""): tensor for key, tensor in state.items()}
    if AVERAGES in state and all(key.startswith("module.") for key in state if key != AVERAGES):
        del state[AVERAGES]
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _unwrapped(content: Any, path: Path, report: Report) -> Any:
    """Return the mapping that holds the weights, nested under known keys or under the only key with weights."""
    while isinstance(content, Mapping):
        nested = [key for key, value in content.items() if _has_weights(value)]
        known = [key for key in (*NESTS, *AVERAGED) if key in nested]
        if not known and (len(nested) != 1 or any(isinstance(v, Tensor) for v in content.values())):
            if len(nested) > 1:
                raise ZtwError(
                    f"{path}: holds weights under each of {_listed(nested)}; save only one of them"
                )
            return content
        key = (known or nested)[0]
        if len(nested) > 1:
            others = [other for other in nested if other != key]
            report(Note(f"{path}: uses the weights under {key!r}, not those under {_listed(others)}"))
        content = content[key]
    return content


def _has_weights(value: Any) -> bool:
    """Return whether a value holds tensors with names, at any depth. An optimizer's tensors have numbers."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and (isinstance(inner, Tensor) or (key in NESTS and _has_weights(inner)))
        for key, inner in value.items()
    )


def _tensors(content: Any, path: Path, report: Report) -> dict[str, Tensor]:
    """Return the tensors by name, without entries that are numbers or strings."""
    if not isinstance(content, Mapping) or not content:
        raise ZtwError(f"{path}: holds a {_kind(content)}, not weights by name (a state dict)")
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in content.items():
        unfit = key not in weights and (not weights or not isinstance(value, SCALARS))
        if unfit or not isinstance(key, str):
            raise ZtwError(f"{path}: {key!r} is a {_kind(value)}, must be a tensor with a name")
    if left_out := [key for key in content if key not in weights]:
        report(Note(f"{path}: not used: {_listed(left_out)}"))
    return weights


def _listed(keys: list[Any]) -> str:
    return ", ".join(map(repr, keys))


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_safetensors(path: Path) -> bool:
    """Return whether the content is safetensors: 8 bytes of length, then JSON. The name may lack the suffix."""
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as error:
        raise ZtwError(f"{path}: cannot be read ({error.strerror})") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(_allowed())):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # a broken file makes the unpickler raise anything
        if (found := re.search(r"(?:GLOBAL |function |<class ')([\w.]+)", str(error))) is not None:
            raise ZtwError(
                f"{path}: holds a {found[1]}, which could run code and is not read; save only the model's state_dict()"
            ) from error
        reason = " (TorchScript)" if "TorchScript" in str(error) else ""
        raise ZtwError(
            f"{path}: must be a safetensors file or a torch file that holds only tensors{reason};"
            " save a pickled model again as its state_dict()"
        ) from error
