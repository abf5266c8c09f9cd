from pathlib import Path
from typing import TYPE_CHECKING

from ztw.files import write_json
from ztw.progress import job_log
from ztw.reporting.tracking import start_store

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job_log(snakemake.log[0], snakemake.rule) as report:
    store = start_store(
        snakemake.params.tracking, snakemake.params.study, Path(snakemake.output.store).parent
    )
    write_json(snakemake.output.store, store)
