from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.predict_backbone import predict_backbone
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    predict_backbone(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles(snakemake.input.data, snakemake.input.backbone),
            sets={},
            build=BackboneBuild(**params.build),
        ),
        data=DataSettings(**params.images),
        hardware=HardwareSettings(**params.hardware),
        batch_size=params.batch_size,
        outputs=dict(zip(params.splits, snakemake.output.logits, strict=True)),
        report=report,
    )
