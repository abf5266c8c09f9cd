from ztw.jobs.prepare_dataset import prepare_dataset
from ztw.jobs.run import run

run(snakemake, prepare_dataset)
