from ztw.jobs.run import run
from ztw.jobs.start_tracking import start_tracking

run(snakemake, start_tracking)
