from itertools import product
from typing import TYPE_CHECKING

from ztw.device import set_up
from ztw.jobs.predict import run_predict
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

sets = snakemake.params.settings["ics"]["sets"]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    set_up(snakemake.threads)
    run_predict(
        cell=dict(snakemake.wildcards.items()),
        settings={**snakemake.params.settings, "samples": snakemake.params.samples},
        prepared_file=snakemake.input.data,
        backbone_file=snakemake.input.backbone,
        ics_files=dict(zip(sets, snakemake.input.ics, strict=True)),
        outputs=dict(zip(product(sets, snakemake.params.splits), snakemake.output, strict=True)),
        report=report,
    )
