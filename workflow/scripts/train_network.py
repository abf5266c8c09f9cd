from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.train_network import train_network
from ztw.jobs.training import job_checkpoints
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
backbone = snakemake.input.backbone or None
read = [*snakemake.input.data, *([backbone] if backbone else [])]
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    train_network(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles(snakemake.input.data, backbone),
            sets={name: IcSet(**ics) for name, ics in params.sets.items()},
            build=BackboneBuild(**params.build),
        ),
        name=snakemake.wildcards.ics,
        data=DataSettings(**params.images),
        hardware=HardwareSettings(**params.hardware),
        output=snakemake.output.weights,
        checkpoints=job_checkpoints(params, read, report),
    )
