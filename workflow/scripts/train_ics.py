from typing import TYPE_CHECKING

from ztw.jobs import set_up
from ztw.progress import job_log
from ztw.training_jobs import run_train_ics

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
