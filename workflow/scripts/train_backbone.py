from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.train_backbone import run_train_backbone
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_train_backbone(
        cell=dict(snakemake.wildcards.items()),
        settings=snakemake.params.settings,
        prepared_file=snakemake.input.data,
        output=snakemake.output.weights,
        report=report,
    )
