"""Checkpoints: a safetensors file with a JSON file of metadata beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ztw.catalogue.parts import PLUGINS
from ztw.errors import ZtwError
from ztw.files import read_json, write_json
from ztw.tensors import read_tensors, write_tensors
from ztw.version import __version__


def save_checkpoint(path: Path | str, module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a module's weights to `path`, then the metadata beside it, which mark the checkpoint as complete."""
    write_tensors(path, module.state_dict())
    write_json(Path(path).with_suffix(".json"), metadata)


def load_checkpoint(path: Path | str, module: nn.Module, expected: dict[str, Any]) -> dict[str, Any]:
    """Load the weights of a module if the metadata are as expected; return all metadata.

    Raises:
        ZtwError: if a file is broken, or the metadata, names or shapes do not match.
    """
    metadata = read_json(Path(path).with_suffix(".json"))
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise ZtwError(f"{path}: {key} is {metadata.get(key)!r}, expected {value!r}")
    load_strictly(module, read_tensors(path), str(path))
    return metadata


def load_strictly(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a state dict; raise ZtwError with the mismatches unless all names and shapes match."""
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    surplus = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", surplus), ("shape", sorted(shapes)))
        if keys
    ]
    if problems:
        raise ZtwError(f"{name}: does not fit the network; {'; '.join(problems)}")
    module.load_state_dict(state)


def versions() -> dict[str, Any]:
    """Return the versions that a result depends on: ztw, torch, and the SHA-256 of each plugin's file."""
    plugins = {"plugins": dict(PLUGINS)} if PLUGINS else {}
    return {"ztw": __version__, "torch": torch.__version__, **plugins}
