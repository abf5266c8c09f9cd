from ztw.jobs.predict import predict
from ztw.jobs.run import run

run(snakemake, predict)
