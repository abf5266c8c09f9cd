from ztw.jobs.fit_ensembles import fit_ensembles
from ztw.jobs.run import run

run(snakemake, fit_ensembles)
