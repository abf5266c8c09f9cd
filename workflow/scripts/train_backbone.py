from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.train_backbone import train_backbone
from ztw.jobs.training import job_checkpoints
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
read = list(snakemake.input.data)
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    settings = BackboneSettings(**params.backbone)
    train_backbone(
        networks=CellNetworks(Cell.of(snakemake.wildcards), CellFiles(snakemake.input.data), {}, settings),
        settings=settings,
        data=DataSettings(**params.images, root=params.root),
        hardware=HardwareSettings(**params.hardware),
        output=snakemake.output.weights,
        checkpoints=job_checkpoints(params, read, report),
    )
