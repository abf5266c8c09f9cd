from ztw.jobs.compute_latency import compute_latency
from ztw.jobs.run import run

run(snakemake, compute_latency)
