from pathlib import Path
from typing import TYPE_CHECKING

from ztw.progress import job_log
from ztw.reporting.overhead import write_pipeline

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule):
    study = Path(snakemake.output.csv).parent.parent
    write_pipeline(study, snakemake.params.cores, snakemake.output.csv)
