from ztw.jobs.compare_methods import compare_methods
from ztw.jobs.run import run

run(snakemake, compare_methods)
