from ztw.jobs.run import run
from ztw.jobs.write_report import write_report

run(snakemake, write_report)
