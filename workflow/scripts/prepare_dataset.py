from typing import TYPE_CHECKING

from ztw.data.prepare import prepare_dataset
from ztw.files import data_root, write_json
from ztw.progress import job_log

if TYPE_CHECKING:
    from snakemake.script import snakemake

data = snakemake.params.settings["data"]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    record = prepare_dataset(
        snakemake.wildcards.dataset, data_root(data["root"]), data["image_folders"], report
    )
    write_json(snakemake.output.record, record)
