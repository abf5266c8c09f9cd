"""Checkpoints: safetensors with a JSON beside them, read strictly."""

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


def save_checkpoint(path: Path | str, module: nn.Module, facts: dict[str, Any]) -> None:
    """Write a module's weights to `path` and what they are to the sibling .json (last, so that it vouches)."""
    write_tensors(path, module.state_dict())
    write_json(Path(path).with_suffix(".json"), facts)


def load_checkpoint(path: Path | str, module: nn.Module, expected: dict[str, Any]) -> dict[str, Any]:
    """Fill `module` strictly from `path`, after its JSON has been compared with `expected`.

    Returns the JSON's facts. Raises ZtwError when the files are broken, when a fact in `expected`
    (architecture, class count, ...) differs, or when names or shapes of the weights do not match.
    """
    facts = read_json(Path(path).with_suffix(".json"))
    for key, value in expected.items():
        if facts.get(key) != value:
            raise ZtwError(f"{path}: {key} is {facts.get(key)!r}, expected {value!r}")
    load_strictly(module, read_tensors(path), str(path))
    return facts


def load_strictly(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a state dict whose names and shapes must all match; the error lists what does not."""
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
    """The versions a result depends on: ztw, torch, and of each plugin the SHA-256 of its file."""
    plugins = {"plugins": dict(PLUGINS)} if PLUGINS else {}
    return {"ztw": __version__, "torch": torch.__version__, **plugins}
