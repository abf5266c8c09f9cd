from typing import TYPE_CHECKING

from ztw.jobs.aggregate import ResultFiles, TableFiles, aggregate
from ztw.progress import job_log
from ztw.study.settings import EvaluationSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule) as report:
    aggregate(
        methods=params.methods,
        evaluation=EvaluationSettings(**params.evaluation),
        files=ResultFiles(**dict(snakemake.input.items())),
        tables=TableFiles(**dict(snakemake.output.items())),
        report=report,
    )
