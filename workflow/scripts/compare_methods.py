from itertools import product
from typing import TYPE_CHECKING

from ztw.jobs.compare_methods import compare_methods
from ztw.progress import job_log
from ztw.study.settings import Cell, EvaluationSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
cells = [Cell(*names) for names in params.cells]
with job_log(snakemake.log[0], snakemake.rule) as report:
    compare_methods(
        answers=dict(zip(product(cells, params.methods), snakemake.input.answers, strict=True)),
        evaluation=EvaluationSettings(**params.evaluation),
        output=snakemake.output.csv,
        report=report,
    )
