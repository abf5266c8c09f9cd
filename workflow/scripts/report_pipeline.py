from ztw.jobs.report_pipeline import report_pipeline
from ztw.jobs.run import run

run(snakemake, report_pipeline)
