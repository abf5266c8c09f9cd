from ztw.jobs.aggregate import aggregate
from ztw.jobs.run import run

run(snakemake, aggregate)
