from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.cell import CellFiles
from ztw.jobs.measure_latency import run_measure_latency
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
settings = {**params.settings, **params.study}
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_measure_latency(
        cell=dict(snakemake.wildcards.items()),
        settings=settings,
        files=CellFiles.of(snakemake.input, settings["ics"]["sets"], params.splits, params.ensembles),
        output=snakemake.output.times,
        report=report,
    )
