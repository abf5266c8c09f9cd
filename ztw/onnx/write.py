"""Write a network as one ONNX file with early exits, for any batch size."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ztw.batch import InputSpec, tensors_of
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.exits.rules import RULES, ExitRule, ThresholdRule, as_rule, describe_rule, exit_scores
from ztw.exits.sweep import simulate_exits
from ztw.extras import need
from ztw.files import atomic
from ztw.models.backbone import Backbone
from ztw.models.costs import fixed_exit_macs, macs
from ztw.models.network import EarlyExitNetwork, static_network
from ztw.onnx.form import BOUNDS, EXIT_INDEX, LOGITS, Form, answer, score
from ztw.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto


OPSET = 20
METADATA = "ztw"  # key of ztw's entry in the file's metadata
SCHEMA = 3
SAMPLES = 4  # batch size of the export: 1 would become a constant, and 3 could be taken for the channels
PROBES = 16
CLOSE = 1e-3  # tolerance of logits, relative to the largest
CLEAR = 1e-3  # a score closer to its bound may pass in one runtime and not in another, because of rounding


def write_onnx(
    network: EarlyExitNetwork | Backbone,
    rule: ExitRule | str | None,
    path: Path | str,
    change: Callable[[ModelProto, InputSpec], ModelProto] | None = None,
) -> Path:
    """Export a network as `export_onnx` does, with an optional change of the flat graph.

    With `change`, the logits of the graph are not compared with the network's.
    """
    check_default_dtype()
    need_onnx()
    if Path(path).is_dir():
        raise ZtwError(f"{path}: is a folder, must be a file, e.g. network.onnx")
    network, rule = to_export(network, rule)
    flat, form = flat_graph(network, rule)
    if change is not None:
        flat = change(flat, form.inputs)
    return write_flat(network, rule, path, flat, form, check=change is None)


def to_export(
    network: EarlyExitNetwork | Backbone, rule: ExitRule | str | None
) -> tuple[EarlyExitNetwork, ExitRule | None]:
    """Check the arguments of an export; return a copy of the network on the CPU in eval mode, and the rule."""
    rule = None if rule is None else as_rule(rule)
    if isinstance(network, Backbone):
        if rule is not None:
            raise ZtwError(
                f"export_onnx: {type(rule).__name__} for a Backbone, which has no exits; use rule=None"
            )
        network = static_network(network)
    elif not isinstance(network, EarlyExitNetwork):
        raise ZtwError(f"export_onnx: {type(network).__name__}, must be an EarlyExitNetwork or a Backbone")
    elif rule is None:
        raise ZtwError("export_onnx: an EarlyExitNetwork needs a rule, e.g. ztw.MaxSoftmax(0.9)")
    elif not network.heads:
        raise ZtwError(
            "export_onnx: the network has no exits but its last one; export its backbone, with rule=None"
        )
    if rule is not None:
        rule.bounds(network.exits)  # raises ZtwError for a rule that does not fit
        if rule.single:
            network.check_fixed_exit()
    return copy.deepcopy(network).cpu().eval(), rule


def write_flat(
    network: EarlyExitNetwork,
    rule: ExitRule | None,
    path: Path | str,
    flat: ModelProto,
    form: Form,
    check: bool,
) -> Path:
    """Write the file of a flat graph, which is changed.

    Args:
        network, rule: from `to_export`.
        flat, form: from `flat_graph`, of this network and a rule of the same class.
        check: whether to compare the logits with the network's.
    """
    import onnx

    from ztw.onnx.nesting import nest

    bounds = torch.empty(0) if rule is None or rule.single else rule.bounds(network.exits)
    _remove_notes(flat)
    model = nest(flat, form)
    if form.exits > 1:  # the default value of the input
        model.graph.initializer.append(onnx.numpy_helper.from_array(float32_below(bounds), BOUNDS))
    metadata = describe(network, form.inputs, rule, bounds)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata, sort_keys=True)})
    try:
        content = model.SerializeToString()
        onnx.checker.check_model(content)
    except ValueError as error:
        raise ZtwError(
            f"{path}: {network.backbone.arch} is larger than the 2 GB an ONNX file can hold"
        ) from error
    if check:
        _check_outputs(content, network, rule)
    with atomic(path) as scratch:
        scratch.write_bytes(content)
    return Path(path)


def need_onnx() -> None:
    """Raise ZtwError if the packages of ztw[onnx] are missing."""
    need("ONNX", "onnx", "onnx", "onnxruntime", "onnxscript")


def flat_graph(network: EarlyExitNetwork, rule: ExitRule | None) -> tuple[ModelProto, Form]:
    """Return the flat graph of all exits, see `ztw.onnx.nesting`, or of a rule's only exit, and its sizes."""
    from ztw.onnx.modules import AllExits, OneExit, exportable

    form, ready = form_of(network), exportable(network)
    if rule is not None and rule.only_exit is not None:
        module: nn.Module = OneExit(ready, rule.only_exit - 1)
        form = replace(form, exits=1)
    else:
        module = AllExits(ready, RULES["max_softmax"] if rule is None else type(rule))
    flat = exported(module, form, network.backbone.arch)
    return flat, replace(form, inputs=_inputs_of(flat, form.inputs))


def _inputs_of(flat: ModelProto, inputs: InputSpec) -> InputSpec:
    """Return the inputs with the sizes that the graph fixes, e.g. because the exporter unrolled a loop over them."""
    items = []
    for item, value in zip(inputs.inputs, flat.graph.input, strict=True):
        sides = [
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim[1:]
        ]
        items.append(replace(item, shape=tuple(sides)))
    return replace(inputs, inputs=tuple(items))


def form_of(network: EarlyExitNetwork) -> Form:
    """Return the form of a network's graph."""
    backbone = network.backbone
    return Form(network.exits, backbone.num_classes, backbone.inputs, network.ensemble is not None)


def exported(module: nn.Module, form: Form, name: str) -> ModelProto:
    """Export a module to a flat graph, for any batch size.

    Args:
        module: its `forward(*inputs)` returns the outputs of a flat graph, see `ztw.onnx.nesting`.
        form: of the graph.
        name: of the network, for error messages.

    Raises:
        ZtwError: if ONNX cannot hold the module.
    """
    from ztw.onnx.recurrent import Recurrent, translations

    batch, free = torch.export.Dim("batch"), torch.export.Dim.AUTO
    dims = [
        {0: batch, **{axis: free for axis, side in enumerate(item.shape, start=1) if side is None}}
        for item in form.inputs.inputs
    ]
    with _quiet(), torch.no_grad(), Recurrent():
        try:
            program = torch.onnx.export(
                module.eval(),
                tensors_of(form.inputs.sample(SAMPLES)),
                input_names=form.inputs.names,
                output_names=[part(exit) for exit in range(form.exits) for part in (answer, score)][:-1],
                dynamic_shapes={"inputs": tuple(dims)},
                opset_version=OPSET,
                dynamo=True,
                custom_translation_table=translations(),
                verbose=False,
            )
        except Exception as error:  # the exporter may raise anything for a user's model
            cause = " ".join(str(error.__cause__ or error).split())[:200]
            raise ZtwError(f"{name}: ONNX cannot hold it ({cause})") from error
    assert program is not None
    return program.model_proto


def _remove_notes(flat: ModelProto) -> None:
    """Remove the exporter's notes: modules, and lines of source code with their paths."""
    for part in (flat, flat.graph, *flat.graph.node, *flat.graph.value_info, *flat.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def describe(
    network: EarlyExitNetwork, inputs: InputSpec, rule: ExitRule | None, bounds: Tensor
) -> dict[str, Any]:
    """Return the metadata that a runner needs."""
    backbone, cost = network.backbone, macs(network)
    if rule is not None and rule.only_exit is not None:
        cost = fixed_exit_macs(network)[rule.only_exit - 1 :][:1]
    return {
        "schema": SCHEMA,
        "ztw": __version__,
        "arch": backbone.arch,
        "exits": len(cost),
        "num_classes": backbone.num_classes,
        "class_names": network.class_names,
        "inputs": inputs.to_json(),
        "normalisation": network.normalisation,
        "log_probabilities": network.ensemble is not None,
        "rule": None if rule is None else describe_rule(rule),
        "bounds": bounds.tolist(),
        "macs": cost.tolist(),
        "backbone_macs": macs(backbone),
    }


def float32_below(bounds: Tensor) -> np.ndarray:
    """Round bounds (K - 1,) down to float32, so that the same float32 scores exceed them."""
    exact = bounds.double().numpy()
    single = exact.astype(np.float32)
    return np.where(single > exact, np.nextafter(single, np.float32(-np.inf)), single).astype(np.float32)


@torch.inference_mode()
def _check_outputs(content: bytes, network: EarlyExitNetwork, rule: ExitRule | None) -> None:
    """Raise ZtwError unless the graph and the network give the same exits and logits for sample inputs."""
    import onnxruntime

    inputs = network.backbone.inputs
    batch = inputs.sample(PROBES)
    given = {name: tensor.numpy() for name, tensor in zip(inputs.names, tensors_of(batch), strict=True)}
    logits = network(batch)
    logits = logits if network.ensemble is None else network.ensemble(logits)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if rule is None or rule.only_exit is not None:
        (found,) = session.run([LOGITS], given)
        expected = logits[0 if rule is None else (rule.only_exit or 1) - 1]
        _compare(network, torch.from_numpy(found), expected, torch.ones(PROBES, dtype=torch.bool))
        return
    scores = exit_scores(logits, type(rule))
    probe = _median_rule(scores, type(rule)) if isinstance(rule, ThresholdRule) else rule
    bounds = probe.bounds(network.exits)
    clear = ((scores[:-1] - bounds[:, None]).abs() > CLEAR).all(0)
    given[BOUNDS] = float32_below(bounds)
    found, where = (torch.from_numpy(output) for output in session.run([LOGITS, EXIT_INDEX], given))
    exit_index, predicting = simulate_exits(logits, probe)
    if not torch.equal(where[clear], exit_index[clear]):
        raise ZtwError(f"{network.backbone.arch}: samples leave at other exits in ONNX than in PyTorch")
    _compare(network, found, logits[predicting, torch.arange(PROBES)], clear)


def _median_rule(scores: Tensor, kind: type[ThresholdRule]) -> ThresholdRule:
    """Return the rule at which half of the samples that reach an exit leave there; scores: (K, N)."""
    left = torch.ones(scores.shape[1], dtype=torch.bool)
    bounds = []
    for row in scores[:-1]:
        bounds.append(row[left].median() if left.any() else row.median())
        left &= row <= bounds[-1]
    ordered = scores.flatten().unique()
    places = torch.searchsorted(ordered, torch.stack(bounds), right=True).clamp(max=len(ordered) - 1)
    between = (torch.stack(bounds) + ordered[places]) / 2  # so that no score equals a threshold
    return kind(tuple(kind.thresholds(between).tolist()))


def _compare(network: EarlyExitNetwork, found: Tensor, expected: Tensor, clear: Tensor) -> None:
    off = (found - expected)[clear].abs().max() if clear.any() else torch.zeros(())
    if not off <= CLOSE * expected.abs().max().clamp(min=1):
        raise ZtwError(
            f"{network.backbone.arch}: the logits in ONNX differ from PyTorch's by up to {off:.2g}"
        )
