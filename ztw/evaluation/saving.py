"""An early-exit network in a folder: written with all that an application needs, and made again from it alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError
from ztw.evaluation.network_file import Weights, network_facts, write_network
from ztw.evaluation.network_folder import FILE, FORMAT, VERSION
from ztw.exits.ensembles import build_ensemble
from ztw.exits.rules import ExitRule, as_rule, rule_from
from ztw.files import read_json, sha256
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.checkpoints import load_strictly
from ztw.models.costs import macs
from ztw.models.cut import as_backbone
from ztw.models.module_json import describe_module, module_from
from ztw.models.network import EarlyExitNetwork, static_network
from ztw.progress import Note, Report, reporter
from ztw.tensors import read_tensors, write_tensors

WEIGHTS = "weights.safetensors"


def save(
    network: EarlyExitNetwork,
    path: Path | str,
    rule: ExitRule | str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    progress: bool | Report = True,
) -> None:
    """Write a network into a folder: weights.safetensors, and a readable network.json with all the rest.

    The network that was written is loaded again and must answer as this one does. A module of yours that torch.fx
    cannot follow is saved without its code: `load` then needs `model=`, and `progress` gets a line that says so.

    Args:
        network: its ensemble, where it has one, is saved with it.
        path: of the folder.
        rule: what it runs with, e.g. the one of `choose_threshold`, or a text such as "max_softmax 0.9".
        class_names: a name for each class; None = the network's own, if any.
        normalisation: mean and std per channel, of pixels in [0, 1], that its images are normalised with; None = the
            network's own, if any.
        progress: see `train_exits`.

    Raises:
        ZtwError: for wrong arguments, heads that are not of `build_network`, and what cannot be written.
    """
    if not isinstance(network, EarlyExitNetwork):
        raise ZtwError(f"save: {type(network).__name__}, must be an EarlyExitNetwork")
    folder, report = Path(path), reporter(progress)
    if folder.exists() and not folder.is_dir():
        raise ZtwError(f"{folder}: is a file, must be a folder or not there yet")
    if rule is not None:
        rule = as_rule(rule)
        rule.bounds(network.exits)
    if class_names is not None:
        network.class_names = _class_names(class_names, network)
    if normalisation is not None:
        network.normalisation = _normalisation(normalisation, network)
    rules: list[tuple[float | str | None, ExitRule]] = [] if rule is None else [(None, rule)]
    like = copy.deepcopy(network).cpu().eval()  # answers as the loaded one does, on the same kernels
    cost, base = macs(like), macs(like.backbone)
    write_tensors(folder / WEIGHTS, _unshared(like.state_dict()))
    reasons: list[str] = []
    for described in _descriptions(like.backbone, reasons):
        write_network(
            folder, network_facts(network, described, cost, base), [Weights(folder / WEIGHTS)], rules
        )
        if _loads_alike(folder, like, reasons):
            return
    origin = like.backbone.origin or {}
    given = {"as_backbone": origin.get("as_backbone")}
    write_network(folder, network_facts(network, given, cost, base), [Weights(folder / WEIGHTS)], rules)
    if report is not None:
        what = (
            "model=<a new one of your model>"
            if given["as_backbone"]
            else "model=<a Backbone made as this one>"
        )
        report(Note(f"{folder}: to be loaded with ztw.load({str(path)!r}, {what}): {reasons[-1]}"))


def load(
    path: Path | str, budget: float | str | None = None, *, model: nn.Module | None = None
) -> tuple[EarlyExitNetwork, ExitRule | None]:
    """The network of a folder, on the CPU in eval mode, and the rule it runs with.

    path: of `save`, or a study's networks/<method>; budget: which of a study's rules, by default the first feasible
    one of its `evaluation.budgets`; None where no rule was saved. model: only for a backbone that could not be put
    into words: a new model of the same class as was given to `as_backbone`, or a Backbone made in the same way.
    Nothing that the folder holds is run. Raises ZtwError naming the file that is missing, altered or of another
    version, or the budget that it has no rule for.
    """
    folder = Path(path)
    file = folder / FILE
    if not file.is_file():
        raise ZtwError(f"{file}: is not there; a network is a folder that ztw.save has written")
    facts = read_json(file, "save the network again")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ZtwError(f"{file}: is no network that ztw.save has written")
    if facts.get("version") != VERSION:
        raise ZtwError(f"{file}: version {facts.get('version')!r} of the format, this ztw reads {VERSION}")
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced, are drawn
            network = _make(facts, folder, model)
        rules = [
            (item["budget"], {key: item[key] for key in item if key != "budget"}) for item in facts["rules"]
        ]
        rule = _rule(rules, budget, file)
        if rule is not None:
            rule.bounds(network.exits)
    except ZtwError as error:
        named = str(error) if str(error).startswith(str(folder)) else f"{file}: {error}"
        raise ZtwError(named) from error
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        SyntaxError,
        AssertionError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ZtwError(f"{file}: is not as ztw.save writes it ({reason})") from error
    return network.eval(), rule


def _make(facts: dict[str, Any], folder: Path, model: nn.Module | None) -> EarlyExitNetwork:
    backbone = _backbone(facts, model)
    if (list(backbone.input_shape), backbone.num_classes) != (facts["input_shape"], facts["num_classes"]):
        raise ZtwError(
            f"its backbone takes {list(backbone.input_shape)} and has {backbone.num_classes} classes, expected"
            f" {facts['input_shape']} and {facts['num_classes']}"
        )
    if facts["placement"]:
        heads = {**facts["heads"], "init": "torch"}
        network = build_network(
            backbone, facts["connection"], placement=facts["placement"], progress=False, **heads
        )
        network.anatomy = dict(facts["heads"])
    else:
        network = static_network(backbone)
    if (ensemble := facts["ensemble"]) is not None:
        network.ensemble = build_ensemble(
            ensemble["kind"], network.exits, backbone.num_classes, ensemble["include_final"]
        )
    if facts["class_names"] is not None:
        network.class_names = _class_names(facts["class_names"], network)
    if (pair := facts["normalisation"]) is not None:
        network.normalisation = _normalisation((pair["mean"], pair["std"]), network)
    state: dict[str, Tensor] = {}
    for part in facts["weights"]:
        state |= _read_weights(folder / part["file"], part)
    load_strictly(network, state, str(folder / facts["weights"][0]["file"]))
    return network


def _read_weights(path: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise ZtwError(f"{path}: is not there, and {FILE} needs it")
    if (found := sha256(path)) != facts["sha256"]:
        raise ZtwError(
            f"{path}: altered or truncated (SHA-256 {found[:12]}..., {FILE} expects {str(facts['sha256'])[:12]}...)"
        )
    return {f"{facts['prefix']}{name}": value for name, value in read_tensors(path, "save it again").items()}


def _backbone(facts: dict[str, Any], model: nn.Module | None) -> Backbone:
    described, shape = facts["backbone"], tuple(facts["input_shape"])
    if isinstance(model, Backbone):
        return copy.deepcopy(model)
    if "as_backbone" in described:
        how = described["as_backbone"]
        if model is None or how is None:
            kind = "Backbone made as the saved one" if how is None else facts["arch"]
            raise ZtwError(f"its backbone could not be put into words; give load model=<a {kind}>")
        return as_backbone(model, shape, at=how["at"])
    if model is not None:
        raise ZtwError("needs no model=, its backbone is described")
    if "build_backbone" in described:
        how = described["build_backbone"]
        if "weights" in how:  # would be downloaded
            raise ZtwError("build_backbone: has weights, which are those of the folder")
        return build_backbone(**how)
    stages = [module_from(stage) for stage in described["stages"]]
    return Backbone(facts["arch"], stages, module_from(described["classifier"]), shape)


def _descriptions(backbone: Backbone, reasons: list[str]) -> Any:
    """Ways to say how a backbone is made, the shortest first; reasons: gets why one cannot be."""
    if backbone.origin and "build_backbone" in backbone.origin:
        yield {"build_backbone": {**backbone.origin["build_backbone"], "init": "torch"}}
    try:
        yield {
            "stages": [describe_module(stage) for stage in backbone.stages],
            "classifier": describe_module(backbone.classifier),
        }
    except ZtwError as error:
        reasons.append(str(error))


@torch.no_grad()
def _loads_alike(folder: Path, network: EarlyExitNetwork, reasons: list[str]) -> bool:
    """Whether what was written answers as the network does."""
    images = torch.randn(3, *network.backbone.input_shape, generator=torch.Generator().manual_seed(0))
    try:
        found, expected = load(folder)[0](images), network(images)
    except ZtwError as error:
        reasons.append(str(error))
        return False
    same = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4, equal_nan=True
    )
    if not same:
        reasons.append("what was written answers something else")
    return same


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are tied have two names, but safetensors wants each in memory of its own."""
    seen: set[int] = set()
    alone = {}
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        alone[name] = value.clone() if place in seen else value
        seen.add(place)
    return alone


def _class_names(names: Any, network: EarlyExitNetwork) -> tuple[str, ...]:
    given = [] if isinstance(names, str) else list(names)
    if len(given) != network.backbone.num_classes or not all(isinstance(name, str) for name in given):
        raise ZtwError(
            f"class_names: {json.dumps(given, default=str)[:80]}, must be {network.backbone.num_classes} names"
        )
    return tuple(given)


def _normalisation(pair: Any, network: EarlyExitNetwork) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = network.backbone.input_shape[0]
    try:
        mean, std = (tuple(float(value) for value in part) for part in pair)
    except (TypeError, ValueError) as error:
        raise ZtwError(f"normalisation {pair!r}: must be (mean, std), {channels} numbers each") from error
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise ZtwError(f"normalisation {pair!r}: must be (mean, std), {channels} numbers each, std above 0")
    return mean, std


def _rule(rules: list[tuple[Any, dict[str, Any]]], budget: float | str | None, file: Path) -> ExitRule | None:
    if budget is None:
        return rule_from(rules[0][1]) if rules else None
    for known, facts in rules:
        if known == budget:
            return rule_from(facts)
    known_ones = ", ".join(str(known) for known, _ in rules if known is not None) or "none"
    raise ZtwError(f"budget {budget!r}: {file} has rules for {known_ones}")
