from typing import TYPE_CHECKING

from ztw.jobs.track_cell import CellFacts, track_cell
from ztw.progress import job_log
from ztw.study.settings import Cell

if TYPE_CHECKING:
    from snakemake.script import snakemake

params, files = snakemake.params, snakemake.input
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    track_cell(
        cell=Cell.of(snakemake.wildcards),
        study=params.study,
        methods=(params.methods, params.families),
        protocol=params.protocol,
        files=CellFacts(
            files.store,
            files.backbone,
            files.ics,
            files.ensembles,
            files.metrics,
            files.curves,
            files.networks,
            next(iter(files.times), None),
        ),
        output=snakemake.output.runs,
        report=report,
    )
