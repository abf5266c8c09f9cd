from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.cell import CellFiles, CellNetworks, static_networks
from ztw.jobs.latency_bench import LatencyPlan
from ztw.jobs.measure_latency import measure_latency
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import (
    Cell,
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)
from ztw.study.training_settings import BackboneBuild, IcSet

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    measure_latency(
        networks=CellNetworks(
            cell=Cell.of(snakemake.wildcards),
            files=CellFiles.of(snakemake.input, params.sets, ["validation"], params.ensembles),
            sets={name: IcSet(**ics) for name, ics in params.sets.items()},
            build=BackboneBuild(**params.build),
            statics=static_networks(
                Cell.of(snakemake.wildcards),
                snakemake.input,
                {arch: BackboneBuild(**build) for arch, build in params.statics.items()},
            ),
        ),
        plan=LatencyPlan(
            methods={name: MethodSettings(**method) for name, method in params.methods.items()},
            evaluation=EvaluationSettings(**params.evaluation),
            latency=LatencySettings(**params.latency),
            data=DataSettings(**params.images),
            hardware=HardwareSettings(**params.hardware),
            code=[params.code, dict(params.plugins)],
        ),
        output=snakemake.output.times,
        report=report,
    )
