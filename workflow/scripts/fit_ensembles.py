from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.fit_ensembles import run_fit_ensembles
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_fit_ensembles(
        settings=snakemake.params.settings,
        predictions={
            tuple(source.split("/")): file
            for source, file in zip(snakemake.params.sources, snakemake.input, strict=True)
        },
        outputs=dict(zip(snakemake.params.ensembles, snakemake.output.weights, strict=True)),
        report=report,
    )
