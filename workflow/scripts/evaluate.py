from ztw.jobs.evaluate import evaluate
from ztw.jobs.run import run

run(snakemake, evaluate)
