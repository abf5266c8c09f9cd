from ztw.jobs.run import run
from ztw.jobs.train_backbone import train_backbone

run(snakemake, train_backbone)
