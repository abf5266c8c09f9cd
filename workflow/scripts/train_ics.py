from ztw.jobs.run import run
from ztw.jobs.train_ics import train_ics

run(snakemake, train_ics)
