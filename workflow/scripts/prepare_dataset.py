from typing import TYPE_CHECKING

from ztw.jobs.prepare_dataset import prepare_dataset
from ztw.progress import job_log
from ztw.study.settings import DataSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    prepare_dataset(
        name=snakemake.wildcards.dataset,
        data=DataSettings(**snakemake.params.data),
        output=snakemake.output.record,
        report=report,
    )
