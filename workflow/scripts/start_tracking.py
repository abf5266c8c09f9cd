from typing import TYPE_CHECKING

from ztw.jobs.start_tracking import start_tracking
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule) as report:
    start_tracking(snakemake.params.tracking, snakemake.params.study, snakemake.output.store, report)
