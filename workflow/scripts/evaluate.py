from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.cell import CellFiles
from ztw.jobs.evaluate import run_evaluate
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

params, output = snakemake.params, snakemake.output
settings = {**params.settings, **params.study}
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_evaluate(
        cell=dict(snakemake.wildcards.items()),
        settings=settings,
        files=CellFiles.of(snakemake.input, settings["ics"]["sets"], params.splits, params.ensembles),
        outputs=dict(
            zip(
                settings["methods"],
                zip(output.curves, output.metrics, output.answers, strict=True),
                strict=True,
            )
        ),
        figure_stem=output.figure.removesuffix(".png"),
        report=report,
    )
