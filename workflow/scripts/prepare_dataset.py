from typing import TYPE_CHECKING

from ztw.jobs.prepare_dataset import prepare_dataset
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import DataSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

name, folder = snakemake.wildcards.dataset, snakemake.params.folder
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(snakemake.params.plugins)
    prepare_dataset(
        name=name,
        split=snakemake.wildcards.split,
        data=DataSettings(root=snakemake.params.root, image_folders={name: folder} if folder else {}),
        output=snakemake.output.record,
        report=report,
    )
