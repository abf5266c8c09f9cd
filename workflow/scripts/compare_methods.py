from itertools import product
from typing import TYPE_CHECKING

from ztw.jobs.compare_methods import run_compare_methods
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

cells, methods = snakemake.params.cells, snakemake.params.methods
with job_log(snakemake.log[0], snakemake.rule) as report:
    answers = {
        (*cell, method): file
        for (cell, method), file in zip(product(cells, methods), snakemake.input.answers, strict=True)
    }
    run_compare_methods(answers, snakemake.params.settings["evaluation"], snakemake.output.csv, report)
