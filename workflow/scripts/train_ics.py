from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.train_ics import train_ics
from ztw.jobs.training import job_checkpoints
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
read = [*snakemake.input.data, snakemake.input.backbone]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    train_ics(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles(snakemake.input.data, snakemake.input.backbone),
            sets={name: IcSet(**ics) for name, ics in params.sets.items()},
            build=BackboneBuild(**params.build),
        ),
        data=DataSettings(**params.images),
        hardware=HardwareSettings(**params.hardware),
        outputs=dict(zip(params.sets, snakemake.output.weights, strict=True)),
        checkpoints=job_checkpoints(params, read, report),
    )
