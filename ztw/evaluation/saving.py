"""Save an early-exit network in a folder, and load it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ztw.batch import InputSpec
from ztw.errors import ZtwError
from ztw.evaluation.network_file import Weights, network_metadata, write_network
from ztw.evaluation.network_folder import FILE, FORMAT, VERSION
from ztw.exits.ensembles import build_ensemble
from ztw.exits.rules import ExitRule, as_rule, rule_from
from ztw.files import read_json, sha256
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.cascade import ModelCascade
from ztw.models.checkpoints import load_strictly
from ztw.models.costs import macs
from ztw.models.cut import as_backbone
from ztw.models.exported import ExportedPart
from ztw.models.module_json import describe_part, part_from
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
    """Save a network, and optionally its rule, in a folder: weights.safetensors and a readable network.json.

    Loads the saved network and checks that it predicts the same. A stage that torch.export cannot follow is
    saved without its code: `load` then needs `model=`, and `progress` gets a note.

    Args:
        network: the network, saved with its ensemble if it has one.
        path: the folder.
        rule: a rule with its parameter, e.g. from `choose_threshold`, or a text such as "max_softmax 0.9".
        class_names: one name per class; None = `network.class_names`.
        normalisation: (mean, std) of the images, one number per channel, for pixels in [0, 1]; None =
            `network.normalisation`.
        progress: see `train_exits`.

    Raises:
        ZtwError: for invalid arguments, heads that `build_network` did not make, and a folder that cannot be written.

    Example:
        >>> import ztw, tempfile
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ztw.save(network, folder, rule="max_softmax 0.9")
        ...     loaded, rule = ztw.load(folder)
        >>> rule
        MaxSoftmax(threshold=0.9)
    """
    if not isinstance(network, EarlyExitNetwork):
        raise ZtwError(f"save: {type(network).__name__}, must be an EarlyExitNetwork")
    folder, report = Path(path), reporter(progress)
    if folder.exists() and not folder.is_dir():
        raise ZtwError(f"{folder}: is a file, must be a folder or a new path")
    if rule is not None:
        rule = as_rule(rule)
        rule.bounds(network.exits)
        if rule.single:
            network.check_fixed_exit()
    if class_names is not None:
        network.class_names = _class_names(class_names, network)
    if normalisation is not None:
        network.normalisation = _normalisation(normalisation, network)
    rules: list[tuple[float | str | None, ExitRule]] = [] if rule is None else [(None, rule)]
    like = copy.deepcopy(network).cpu().eval()  # as `load` returns it, for the comparison
    cost, base = macs(like), macs(like.backbone)
    write_tensors(folder / WEIGHTS, _unshared(like.state_dict()))
    reasons: list[str] = []
    for described in _descriptions(like.backbone, reasons):
        write_network(
            folder, network_metadata(network, described, cost, base), [Weights(folder / WEIGHTS)], rules
        )
        if _loads_alike(folder, like, reasons):
            return
    origin = like.backbone.origin or {}
    given = {"as_backbone": origin.get("as_backbone")}
    write_network(folder, network_metadata(network, given, cost, base), [Weights(folder / WEIGHTS)], rules)
    if report is not None:
        what = (
            "model=<a new instance of your model>"
            if given["as_backbone"]
            else "model=<a Backbone made as this one>"
        )
        report(Note(f"{folder}: load it with ztw.load({str(path)!r}, {what}): {reasons[-1]}"))


def load(
    path: Path | str, budget: float | str | None = None, *, model: nn.Module | None = None
) -> tuple[EarlyExitNetwork, ExitRule | None]:
    """Load a network and its rule from a folder, without running code from the folder.

    Args:
        path: a folder from `save`, or networks/<method> of a study.
        budget: for a method of a study, the budget whose rule to load. None = the first budget that has a rule.
        model: only if `save` asked for it: a new instance of the model that `as_backbone` received, or a Backbone built
            like the saved one.

    Returns:
        The network, on the CPU in eval mode, and the rule. The rule is None if none was saved.

    Raises:
        ZtwError: if a file is missing, altered or of another version; if the budget has no rule; and if `model` is
            missing, not needed or another model.

    Example:
        >>> import ztw, tempfile
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ztw.save(network, folder)
        ...     ztw.load(folder)[0].exits
        4
    """
    folder = Path(path)
    file = folder / FILE
    if not file.is_file():
        raise ZtwError(f"{file}: missing; give a folder that ztw.save has written")
    metadata = read_json(file, "save the network again")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ZtwError(f"{file}: not a network that ztw.save has written")
    if metadata.get("version") != VERSION:
        raise ZtwError(
            f"{file}: version {metadata.get('version')!r} of the format, this ztw reads {VERSION};"
            " save the network again with this ztw"
        )
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # drawing initial weights must not change the global generator
            network = _make(metadata, folder, model)
        rules = [
            (item["budget"], {key: item[key] for key in item if key != "budget"})
            for item in metadata["rules"]
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
        raise ZtwError(f"{file}: not as ztw.save writes it ({reason}); save the network again") from error
    return network.eval(), rule


def _make(metadata: dict[str, Any], folder: Path, model: nn.Module | None) -> EarlyExitNetwork:
    backbone = _backbone(metadata, model)
    found = (backbone.inputs.shapes, backbone.num_classes)
    expected = (InputSpec.from_json(metadata["inputs"]).shapes, metadata["num_classes"])
    if found != expected:
        raise ZtwError(
            f"the backbone takes {found[0]} and has {found[1]} classes, expected {expected[0]} and {expected[1]}"
        )
    if metadata["placement"]:
        heads = {**metadata["heads"], "init": "torch"}
        network = build_network(
            backbone, metadata["connection"], placement=metadata["placement"], progress=False, **heads
        )
        network.anatomy = dict(metadata["heads"])
    else:
        network = static_network(backbone)
    if (ensemble := metadata["ensemble"]) is not None:
        network.ensemble = build_ensemble(
            ensemble["kind"], network.exits, backbone.num_classes, ensemble["include_final"]
        )
    if metadata["class_names"] is not None:
        network.class_names = _class_names(metadata["class_names"], network)
    if (pair := metadata["normalisation"]) is not None:
        network.normalisation = _normalisation((pair["mean"], pair["std"]), network)
    state: dict[str, Tensor] = {}
    for part in metadata["weights"]:
        state |= _read_weights(folder / part["file"], part)
    load_strictly(network, state, str(folder / metadata["weights"][0]["file"]))
    return network


def _read_weights(path: Path, part: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise ZtwError(f"{path}: missing; {FILE} needs it")
    if (found := sha256(path)) != part["sha256"]:
        raise ZtwError(
            f"{path}: altered or truncated (SHA-256 {found[:12]}..., {FILE} expects {str(part['sha256'])[:12]}...)"
        )
    return {f"{part['prefix']}{name}": value for name, value in read_tensors(path, "save it again").items()}


def _backbone(metadata: dict[str, Any], model: nn.Module | None) -> Backbone:
    described, inputs = metadata["backbone"], InputSpec.from_json(metadata["inputs"])
    if isinstance(model, Backbone):
        return copy.deepcopy(model)
    if "as_backbone" in described:
        how = described["as_backbone"]
        if model is None or how is None:
            kind = "Backbone made as the saved one" if how is None else metadata["arch"]
            raise ZtwError(f"the backbone could not be described; call load with model=<a {kind}>")
        return as_backbone(model, example=inputs.sample(2), at=how["at"])
    if model is not None:
        raise ZtwError("model= is not needed, because the file describes the backbone; leave it out")
    if "cascade" in described:
        return ModelCascade([_backbone(member, None) for member in described["cascade"]])
    if "build_backbone" in described:
        how = described["build_backbone"]
        if "weights" in how:  # build_backbone would download them
            raise ZtwError("build_backbone: must not name weights; the folder holds them")
        return build_backbone(**how)
    stages = [part_from(stage) for stage in described["stages"]]
    backbone = Backbone(metadata["arch"], stages, part_from(described["classifier"]), inputs)
    if "channels_first" in described:
        backbone.channels_first = tuple(described["channels_first"])
    return backbone


def _descriptions(backbone: Backbone, reasons: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the possible descriptions of a backbone, the best first; add errors to `reasons`."""
    if isinstance(backbone, ModelCascade):
        yield from _cascade_descriptions(backbone, reasons)
        return
    arguments = (backbone.origin or {}).get("build_backbone")
    built = {"build_backbone": arguments and {**arguments, "init": "torch"}}
    slow = isinstance(
        backbone.stages[0], ExportedPart
    )  # torchvision's models are exported again, for seconds
    if arguments and not slow:
        yield built
    try:
        with torch.no_grad():
            batch = backbone.inputs.sample(3, next(backbone.parameters(), None))
            states = [batch, *backbone.eval().features(batch)]
        *stages, classifier = map(describe_part, [*backbone.stages, backbone.classifier], states)
        signals = {"channels_first": list(backbone.channels_first)} if any(backbone.channels_first) else {}
        yield {"stages": stages, "classifier": classifier, **signals}
    except ZtwError as error:
        reasons.append(str(error))
    if arguments and slow:
        yield built


def _cascade_descriptions(cascade: ModelCascade, reasons: list[str]) -> Iterator[dict[str, Any]]:
    """Yield descriptions of a cascade: of the best description of each model, then of the next best ones."""
    known = [list(_descriptions(member, reasons)) for member in cascade.members]
    for rank in range(max(map(len, known)) if all(known) else 0):
        yield cascade.described([found[min(rank, len(found) - 1)] for found in known])


@torch.no_grad()
def _loads_alike(folder: Path, network: EarlyExitNetwork, reasons: list[str]) -> bool:
    """Return whether the saved network predicts the same as the network."""
    batch = network.backbone.inputs.sample(3)
    try:
        found, expected = load(folder)[0](batch), network.eval()(batch)  # a description may change modes
    except ZtwError as error:
        reasons.append(str(error))
        return False
    same = found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4, equal_nan=True
    )
    if not same:
        reasons.append("the loaded network has other predictions")
    return same


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tied weights, because safetensors refuses two names for the same memory."""
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
    if network.backbone.input_shape is None:
        raise ZtwError("normalisation: must be None for a network that does not take images")
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
    for known, described in rules:
        if known == budget:
            return rule_from(described)
    known_ones = ", ".join(str(known) for known, _ in rules if known is not None) or "none"
    raise ZtwError(f"budget {budget!r}: {file} has rules for {known_ones}")
