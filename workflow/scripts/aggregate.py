from typing import TYPE_CHECKING

from ztw.progress import job_log
from ztw.results import from_files, from_runs, write_metrics
from ztw.tables import accuracy_table, write_tables

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule) as report:
    if hasattr(snakemake.input, "store"):
        results = from_runs(snakemake.input.store, snakemake.input.runs, snakemake.params.methods)
    else:
        results = from_files(snakemake.input.metrics)
    rows = accuracy_table(results, snakemake.params.methods, **snakemake.params.settings["evaluation"])
    write_metrics(results, snakemake.output.metrics)
    write_tables(rows, snakemake.output.csv, snakemake.output.md, snakemake.output.tex)
