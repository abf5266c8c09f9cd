from ztw.jobs.draw_gallery import draw_gallery
from ztw.jobs.run import run

run(snakemake, draw_gallery)
