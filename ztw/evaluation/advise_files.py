"""The networks with exits of an advice, the ONNX files of all options, and options that are not timed yet."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.errors import ZtwError
from ztw.evaluation.turn_times import Call
from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import backbone_macs, stage_costs
from ztw.onnx.write import flat_graph, need_onnx, to_export, write_flat

SHARES = (0.2, 0.4, 0.6, 0.8)  # of the model's MACs, after which exits are placed
DEEPEST = 0.95  # an exit after a larger share saves nothing
ANY = "max_softmax 0.5"  # a rule of the class that is exported


@dataclass(frozen=True)
class Candidate:
    """An option that is not timed yet.

    Args:
        calls: runtime -> function of a batch.
        fraction: (K,), share of the samples that leave at each exit; None = there is one exit.
    """

    name: str
    kind: str
    int8: bool
    correct: Tensor
    macs: float
    calls: dict[str, Call]
    network: EarlyExitNetwork | None = None
    rule: ExitRule | None = None
    file: Path | None = None
    fraction: Tensor | None = None


class Folder:
    """A temporary folder for ONNX files, deleted when nothing refers to this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ztw-advise-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Exported:
    """The flat graph of a network, in float32 and int8; exported once for several files.

    Args:
        network: with one exit or several.
        calibration: a batch of training samples.
    """

    def __init__(self, network: EarlyExitNetwork, calibration: Any) -> None:
        self.calibration = calibration
        self.of, self.rule = to_export(network, ANY) if network.heads else to_export(network.backbone, None)

    @cached_property
    def _flat(self) -> Any:
        need_onnx()
        return flat_graph(self.of, self.rule)

    @cached_property
    def _quantised(self) -> Any:
        need_onnx()
        from ztw.onnx.int8 import quantised

        flat, form = self._flat
        return quantised(flat, form.inputs, self.calibration)

    def write(self, path: Path, rule: ExitRule | None, int8: bool) -> Path:
        """Write a file with a rule; None = the default."""
        flat, form = self._flat
        chosen = copy.deepcopy(self._quantised if int8 else flat)
        return write_flat(self.of, rule or self.rule, path, chosen, form, check=not int8)


def with_exits(backbone: Backbone) -> EarlyExitNetwork:
    """Put light heads on a backbone, after about SHARES of its MACs.

    Raises:
        ZtwError: if the backbone has no place before its end.
    """
    done = stage_costs(backbone).cumsum(0) / backbone_macs(backbone)
    nearest = {int((done - share).abs().argmin()) for share in SHARES}
    blocks = sorted(block for block in nearest if done[block] <= DEEPEST)
    if not blocks:
        raise ZtwError("the model cannot be cut before its end, so it has no place for an exit")
    return build_network(backbone, head="pool", placement=blocks, progress=False)


def on_cpu(network: EarlyExitNetwork) -> EarlyExitNetwork:
    """Return the network itself if it is on the CPU, else a copy there."""
    if all(part.device.type == "cpu" for part in network.parameters()):
        return network
    return copy.deepcopy(network).cpu()
