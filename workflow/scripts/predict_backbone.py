from ztw.jobs.predict_backbone import predict_backbone
from ztw.jobs.run import run

run(snakemake, predict_backbone)
