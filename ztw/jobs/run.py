"""Run a job of the workflow with the input that Snakemake gives to its script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from ztw.jobs.job import Job
from ztw.progress import job_log
from ztw.study.layout import Cell, Layout
from ztw.study.plugins import load_plugins

COMMON = ("code", "plugins")  # params of all rules
CELL = ("dataset", "arch", "seed")
ORDER_ONLY = "checked"  # an input that jobs wait for but do not read


def run(snakemake: Any, job: Callable[..., None]) -> None:
    """Run a job with its layout, cell and typed settings, and write its output to the rule's log.

    Args:
        snakemake: the object that Snakemake gives to a script.
        job: a function. Its arguments: a Job; the rule's wildcards by name, or `cell` if they name a cell; and
            `settings` if the rule has params other than COMMON. The annotation of `settings` is their class.
    """
    with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
        params = dict(snakemake.params.items())
        load_plugins(params.get("plugins", {}))
        if "torch" in sys.modules:
            from ztw.device import make_reproducible

            make_reproducible(snakemake.threads)
        inputs = [path for name, path in snakemake.input.items() if name != ORDER_ONLY]
        given = Job(_layout(snakemake), report, params, _paths(inputs))
        job(given, **_names(dict(snakemake.wildcards.items())), **_settings(job, params))


def _paths(inputs: list[Any]) -> list[Path]:
    """Flatten inputs, each a file or a list of files."""
    return [Path(path) for part in inputs for path in ([part] if isinstance(part, str) else part)]


def _layout(snakemake: Any) -> Layout:
    """Return the layout of the study's folder, found in the first output: a Snakemake storage adds its own folder."""
    study = f"results/{snakemake.config['study']}/"
    before, found, _ = str(snakemake.output[0]).partition(study)
    assert found, f"{snakemake.output[0]} is not in {study}"
    return Layout(Path(before + study))


def _names(wildcards: dict[str, str]) -> dict[str, Any]:
    if not set(CELL) <= set(wildcards):
        return wildcards
    dataset, arch, seed = (wildcards.pop(name) for name in CELL)
    return {"cell": Cell(dataset, arch, int(seed)), **wildcards}


def _settings(job: Callable[..., None], params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a rule's params to the job's settings; raises TypeError if the names differ."""
    given = {name: value for name, value in params.items() if name not in COMMON}
    wanted = get_type_hints(job).get("settings")
    if wanted is None and not given:
        return {}
    if wanted is None or set(given) != set(wanted.__dataclass_fields__):
        raise TypeError(
            f"{job.__name__}: the rule's params are {sorted(given)}, not the settings of {wanted}"
        )
    return {"settings": TypeAdapter(wanted).validate_python(given)}
