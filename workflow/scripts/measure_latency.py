from ztw.jobs.measure_latency import measure_latency
from ztw.jobs.run import run

run(snakemake, measure_latency)
