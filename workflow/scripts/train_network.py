from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.train_network import run_train_network
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

cell = dict(snakemake.wildcards.items())
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_train_network(
        cell=cell,
        settings=snakemake.params.settings,
        prepared_file=snakemake.input.data,
        backbone_file=snakemake.input.backbone or None,
        name=cell.pop("ics"),
        output=snakemake.output.weights,
        report=report,
    )
