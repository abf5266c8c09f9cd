from typing import TYPE_CHECKING

from ztw.device import make_reproducible
from ztw.jobs.fit_ensembles import fit_ensembles
from ztw.progress import job_log
from ztw.study.plugins import load_plugins
from ztw.study.settings import EnsembleSettings

if TYPE_CHECKING:
    from snakemake.script import snakemake

params = snakemake.params
with job_log(snakemake.log[0], snakemake.rule, snakemake.wildcards) as report:
    load_plugins(params.plugins)
    make_reproducible(snakemake.threads)
    fit_ensembles(
        ensembles={name: EnsembleSettings(**fitted) for name, fitted in params.fitted.items()},
        predictions={
            tuple(source.split("/")): file
            for source, file in zip(params.sources, snakemake.input, strict=True)
        },
        outputs=dict(zip(params.ensembles, snakemake.output.weights, strict=True)),
        report=report,
    )
