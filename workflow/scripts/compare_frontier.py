from ztw.jobs.compare_frontier import compare_frontier
from ztw.jobs.run import run

run(snakemake, compare_frontier)
