from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks, static_networks
from ztw.jobs.evaluate import evaluate
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import Cell, DataSettings, EvaluationSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild, IcSet

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    output = snakemake.output
    evaluate(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles.of(snakemake.input, params.sets, params.splits, params.ensembles),
            sets={name: IcSet(**ics) for name, ics in params.sets.items()},
            build=BackboneBuild(**params.build),
            statics=static_networks(
                Cell.of(snakemake.wildcards),
                snakemake.input,
                {arch: BackboneBuild(**build) for arch, build in params.statics.items()},
                params.splits,
            ),
        ),
        methods={name: MethodSettings(**method) for name, method in params.methods.items()},
        evaluation=EvaluationSettings(**params.evaluation),
        data=DataSettings(**params.images),
        outputs=dict(
            zip(
                params.methods,
                zip(output.curves, output.metrics, output.answers, output.networks, strict=True),
                strict=True,
            )
        ),
        report=report,
    )
