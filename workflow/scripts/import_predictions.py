from ztw.jobs.import_predictions import import_predictions
from ztw.jobs.run import run

run(snakemake, import_predictions)
