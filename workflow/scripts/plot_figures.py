from typing import TYPE_CHECKING

from ztw.jobs.plot_figures import FigureFiles, plot_figures
from ztw.progress import job_log
from ztw.study.settings import EvaluationSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params, files = snakemake.params, snakemake.input
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    plot_figures(
        names=params.names,
        families=params.families,
        evaluation=EvaluationSettings(**params.evaluation),
        files=FigureFiles(files.metrics, files.curves, next(iter(files.times), None)),
        stem=params.stem,
        report=report,
    )
