from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.train_ics import run_train_ics
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_train_ics(
        cell=dict(snakemake.wildcards.items()),
        settings=snakemake.params.settings,
        prepared_file=snakemake.input.data,
        backbone_file=snakemake.input.backbone,
        outputs=dict(zip(snakemake.params.sets, snakemake.output.weights, strict=True)),
        report=report,
    )
