from ztw.jobs.plot_figures import plot_figures
from ztw.jobs.run import run

run(snakemake, plot_figures)
