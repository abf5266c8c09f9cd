"""A part of a model as graphs of ATen operations: one for inference and one for training, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.batch import Batch, tensors_of
from ztw.errors import ZtwError

aten = torch.ops.aten


class ExportedPart(nn.Module):
    """A part of a model as ATen graphs. It takes the state of the part before it, or a batch.

    Args:
        tensors: weights and buffers by name; both graphs read them as get_attr.
        takes: names of the values that the part takes, in the order of the graphs' placeholders.
        in_eval: the graph for inference.
        in_training: the graph for training; None if the model cannot be exported for it.
        linear: name and module of the last layer, which is applied to what the graphs return.
    """

    places: list[tuple[dict[str, Any], str]]
    linear: tuple[dict[str, Any], str] | None

    def __init__(
        self,
        tensors: dict[str, Tensor],
        takes: Sequence[str],
        in_eval: fx.Graph,
        in_training: fx.Graph | None = None,
        linear: tuple[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.takes = tuple(takes)
        self.names = tuple(
            dict.fromkeys(name for graph in (in_eval, in_training) for name in names_in(graph))
        )
        self.eval_graph, self.training_graph = in_eval, in_training
        self.in_eval = _runner(in_eval, self.names)
        self.in_training = None if in_training is None else _runner(in_training, self.names)
        self.linear_name = "" if linear is None else linear[0]
        # outside the registry of modules, where a model's own `linear` may be
        self.__dict__["places"] = [self._hold(name, tensors[name]) for name in self.names]
        self.__dict__["linear"] = None if linear is None else self._hold(*linear)

    def _hold(self, name: str, what: Tensor | nn.Module) -> tuple[dict[str, Any], str]:
        """Store a tensor or a module under a name with dots, of any words; return its dict and its key."""
        *way, last = name.split(".")
        holder: nn.Module = self
        for step in way:
            if holder._modules.get(step) is None:
                holder._modules[step] = nn.Module()
            holder = holder._modules[step]  # type: ignore[assignment]
        where: dict[str, Any] = holder._buffers
        if isinstance(what, nn.Module | nn.Parameter):
            where = holder._modules if isinstance(what, nn.Module) else holder._parameters
        where[last] = what
        return where, last

    def forward(self, state: Batch) -> Any:
        """Compute the next state, or the logits."""
        run = self.in_training if self.training else self.in_eval
        if run is None:
            raise ZtwError(
                "the backbone cannot be trained: torch.export cannot follow the model in training mode, e.g."
                " torch.no_grad or an autograd.Function in its forward; train the exits with regime='separate'"
            )
        output = run(*self.arguments(state))
        if self.linear is None:
            return output
        where, name = self.linear
        return where[name](output)

    def only_infer(self) -> None:
        """Remove the graph for training."""
        self.training_graph = self.in_training = None

    def arguments(self, state: Batch) -> list[Tensor]:
        """Return the arguments of the graphs as functions: the part's tensors, and the values that it takes."""
        given = [state[name] for name in self.takes] if isinstance(state, dict) else tensors_of(state)
        return [where[name] for where, name in self.places] + list(given)


def names_in(graph: fx.Graph | None) -> list[str]:
    """Return the names of the tensors that a graph reads."""
    return [] if graph is None else [str(node.target) for node in graph.nodes if node.op == "get_attr"]


def _runner(graph: fx.Graph, names: Sequence[str]) -> fx.GraphModule:
    """Return a graph as a function of its tensors and its placeholders.

    Tensors are arguments, not attributes, because two modules of one part cannot share buffers.
    """
    lifted = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    of_name = {name: lifted.placeholder(f"tensor_{number}") for number, name in enumerate(names)}
    for node in graph.nodes:
        if node.op == "get_attr":
            made[node] = of_name[str(node.target)]
        elif node.op == "placeholder":  # its name would be code
            made[node] = lifted.placeholder(f"given_{len(made)}")
        else:
            made[node] = lifted.node_copy(node, made.__getitem__)
    return fx.GraphModule(nn.Module(), lifted)
