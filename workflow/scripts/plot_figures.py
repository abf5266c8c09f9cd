from typing import TYPE_CHECKING

from ztw.jobs.plot_figures import FigureFiles, plot_figures
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import EvaluationSettings, MethodSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params, files = snakemake.params, snakemake.input
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    plot_figures(
        names=params.names,
        methods=(
            {name: MethodSettings(**method) for name, method in params.methods.items()},
            params.families,
        ),
        evaluation=EvaluationSettings(**params.evaluation),
        files=FigureFiles(files.metrics, files.curves, next(iter(files.times), None)),
        stem=params.stem,
        report=report,
    )
