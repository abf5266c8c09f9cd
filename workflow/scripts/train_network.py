from ztw.jobs.run import run
from ztw.jobs.train_network import train_network

run(snakemake, train_network)
