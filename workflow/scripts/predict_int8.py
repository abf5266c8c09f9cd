from ztw.jobs.predict_int8 import predict_int8
from ztw.jobs.run import run

run(snakemake, predict_int8)
