from itertools import chain
from typing import TYPE_CHECKING

import pandas as pd

from ztw.progress import job_log
from ztw.reporting.figures import accuracy_against_time, cell_figures, save
from ztw.reporting.latency_table import read_latency
from ztw.reporting.results import read_metrics

if TYPE_CHECKING:
    from snakemake.script import snakemake

methods, evaluation = snakemake.params.methods, snakemake.params.settings["evaluation"]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    dataset, arch = snakemake.params.names
    results = read_metrics(snakemake.input.metrics, dataset, arch)
    rows = pd.concat([pd.read_parquet(file) for file in snakemake.input.curves])
    rows = rows[rows["split"] == "test"]
    figures = cell_figures(
        {method: rows[rows["method"] == method] for method in methods},
        {method: results[method] for method in methods},
        evaluation["budgets"],
        evaluation["protocols"][0],
        f"{dataset}, {arch}",
    )
    if snakemake.input.times:
        times = read_latency(snakemake.input.times[0], dataset, arch)
        figures = chain(
            figures, [("accuracy_time", accuracy_against_time(times, methods, f"{dataset}, {arch}"))]
        )
    for name, figure in figures:
        report(name)
        save(figure, f"{snakemake.params.stem}-{name}")
