"""What MLflow's pages show of a study: descriptions, and the table of methods with its columns. Imports no mlflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

NOTE = "mlflow.note.content"  # MLflow's tag of a description in Markdown
KIND = (
    "mlflow.experimentKind"  # MLflow's tag that decides between its pages for trained models and for agents
)
TRAINING = "custom_model_development"
VIEW = "methods"  # name of the table of methods among the experiment's shared views
SHARED = "mlflow.sharedViewState."
QUERY = f"viewStateShareKey={VIEW}&workflowType=machine_learning"


def headline(name: str, budget: str) -> str:
    """Return the name of a headline metric at a budget. In the alphabet it is before all other names."""
    return f"at_{budget}/{name}"


def experiment_tags(study: str, command: str, budgets: Sequence[str], timed: bool) -> dict[str, str]:
    """Return the tags of a study's experiment: its description and the columns of its table of methods.

    Args:
        command: makes the study again.
        budgets: as in the names of metrics; the table is sorted by the accuracy at the first one.
        timed: whether there are times.
    """
    names = [headline("accuracy", budget) for budget in budgets]
    names += [headline("relative_time", budget) for budget in budgets if timed]
    columns = [_column("tags", name) for name in ("dataset", "arch")] + [_column("metrics", n) for n in names]
    view = {
        "searchFilter": "tags.kind = 'method'",
        "orderByKey": _column("metrics", names[0]),
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "startTime": "ALL",
        "datasetsFilter": [],
        "selectedColumns": columns,
    }
    note = (
        f"Study **{study}** of ztw: accuracy and cost of early-exit networks.\n\nEach run of kind `method` is a method"
        f" in a cell: a data set, an architecture and a seed. `{headline('accuracy', budgets[0])}` is its test accuracy"
        f" within {budgets[0]} of the backbone's MACs. The cell's own run shows the figure.\n\nMade by `{command}`."
    )
    return {NOTE: note, KIND: TRAINING, SHARED + VIEW: json.dumps(view)}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def table_address(port: str | int, experiment: str) -> str:
    """Return the address of a study's table of methods on this machine."""
    return f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?{QUERY}"


def cell_note(run: str, figure: str | None, headlines: Mapping[str, Mapping[str, float]]) -> str:
    """Return the description of a cell's run: its figure and its accuracies.

    Args:
        figure: name of the figure among the run's artifacts.
        headlines: method -> name of a metric -> value.
    """
    names = list(dict.fromkeys(name for found in headlines.values() for name in found))
    rows = [["method", *names], ["---", *("---:" for _ in names)]]
    rows += [
        [method, *(f"{found[n]:.4f}" if n in found else "-" for n in names)]
        for method, found in headlines.items()
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    image = f"![accuracy against cost](get-artifact?path={figure}&run_uuid={run})\n\n" if figure else ""
    return f"{image}{table}" if names else image
