from typing import TYPE_CHECKING

from ztw.files import read_json, write_json
from ztw.progress import job_log
from ztw.reporting.tracking import track_cell
from ztw.study.provenance import code_version

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    runs = track_cell(
        store=read_json(snakemake.input.store),
        study=snakemake.params.study,
        cell=dict(snakemake.wildcards.items()),
        parts={
            "backbone": [snakemake.input.backbone],
            "ics": list(snakemake.input.ics),
            "ensemble": list(snakemake.input.ensembles),
            "method": list(snakemake.input.metrics),
        },
        artifacts={
            "cell": [snakemake.input.figure],
            **{
                method: [curve]
                for method, curve in zip(snakemake.params.methods, snakemake.input.curves, strict=True)
            },
        },
        code_version=code_version(),
    )
    write_json(snakemake.output.runs, runs)
