from itertools import product
from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.predict import predict
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    predict(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles(
                snakemake.input.data,
                snakemake.input.backbone,
                dict(zip(params.sets, snakemake.input.ics, strict=True)),
            ),
            sets={name: IcSet(**ics) for name, ics in params.sets.items()},
            build=BackboneBuild(**params.build),
        ),
        data=DataSettings(**params.images),
        hardware=HardwareSettings(**params.hardware),
        sizes=(params.batch_size, params.samples),
        outputs=dict(zip(product(params.sets, params.splits), snakemake.output.logits, strict=True)),
        report=report,
    )
