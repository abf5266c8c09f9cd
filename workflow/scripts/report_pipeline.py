from pathlib import Path
from typing import TYPE_CHECKING

from ztw.jobs.report_pipeline import report_pipeline
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule):
    study = Path(snakemake.output.csv).parent.parent
    report_pipeline(study, snakemake.params.cores, snakemake.output.csv)
