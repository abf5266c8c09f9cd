from itertools import product
from typing import TYPE_CHECKING

from ztw.jobs import set_up
from ztw.methods import run_evaluate
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

settings = {**snakemake.params.settings, **snakemake.params.study}
sets, output = settings["ics"]["sets"], snakemake.output
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_evaluate(
        cell=dict(snakemake.wildcards.items()),
        settings=settings,
        prepared_file=snakemake.input.data,
        backbone_file=snakemake.input.backbone,
        ics_files=dict(zip(sets, snakemake.input.ics, strict=True)),
        predictions=dict(
            zip(product(sets, snakemake.params.splits), snakemake.input.predictions, strict=True)
        ),
        ensembles=dict(zip(snakemake.params.ensembles, snakemake.input.ensembles, strict=True)),
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
