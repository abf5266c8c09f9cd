from ztw.jobs.run import run
from ztw.jobs.track_cell import track_cell

run(snakemake, track_cell)
