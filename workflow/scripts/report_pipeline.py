from typing import TYPE_CHECKING

from ztw.pipeline import write_pipeline
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule):
    write_pipeline(snakemake.params.study, snakemake.params.cores, snakemake.output.csv)
