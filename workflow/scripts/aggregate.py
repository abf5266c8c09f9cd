from typing import TYPE_CHECKING

from ztw.jobs.aggregate import write_more_tables
from ztw.progress import job_log
from ztw.reporting.differences import read_noise
from ztw.reporting.latency_table import latency_table, write_latency
from ztw.reporting.results import from_files, from_runs, write_metrics
from ztw.reporting.tables import accuracy_table, write_tables

if TYPE_CHECKING:
    from snakemake.script import snakemake

evaluation, output = snakemake.params.settings["evaluation"], snakemake.output
with job_log(snakemake.log[0], snakemake.rule) as report:
    if hasattr(snakemake.input, "store"):
        results = from_runs(snakemake.input.store, snakemake.input.runs, snakemake.params.methods)
    else:
        results = from_files(snakemake.input.metrics)
    rows = accuracy_table(results, snakemake.params.methods, **evaluation)
    write_metrics(results, output.metrics)
    write_tables(rows, read_noise(snakemake.input.differences), output.csv, output.md, output.tex)
    if output.times:
        write_latency(latency_table(snakemake.input.times, results), *output.times)
    write_more_tables(
        results,
        rows,
        snakemake.input.published,
        evaluation["protocols"],
        output.per_exit,
        output.allowed_loss,
        output.comparison,
    )
