from typing import TYPE_CHECKING

from ztw.jobs import set_up
from ztw.latency import run_measure_latency
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

settings = {**snakemake.params.settings, **snakemake.params.study}
sets = settings["ics"]["sets"]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_measure_latency(
        cell=dict(snakemake.wildcards.items()),
        settings=settings,
        prepared_file=snakemake.input.data,
        backbone_file=snakemake.input.backbone,
        ics_files=dict(zip(sets, snakemake.input.ics, strict=True)),
        predictions={
            (ics, "validation"): file for ics, file in zip(sets, snakemake.input.predictions, strict=True)
        },
        ensembles=dict(zip(snakemake.params.ensembles, snakemake.input.ensembles, strict=True)),
        output=snakemake.output.times,
        report=report,
    )
