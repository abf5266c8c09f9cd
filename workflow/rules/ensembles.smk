# "<IC set>/<split>" whose logits some ensemble is fitted on.
FIT_SOURCES = sorted({f"{ics}/{FITTED[name].fit_on}" for ics, name in ENSEMBLES})

if ENSEMBLES:

    rule fit_ensembles:
        input:
            expand(
                f"{CELL}/predictions/{{source}}.safetensors",
                source=FIT_SOURCES,
                allow_missing=True,
            ),
        output:
            weights=[
                f"{CELL}/ensembles/{ics}/{name}.safetensors" for ics, name in ENSEMBLES
            ],
            facts=[f"{CELL}/ensembles/{ics}/{name}.json" for ics, name in ENSEMBLES],
        log:
            log_of("fit_ensembles"),
        benchmark:
            benchmark_of("fit_ensembles")
        conda:
            ENVIRONMENT
        threads: share_of_cores
        resources:
            mem_mb=doubling(2000),
            runtime=doubling(30),
        params:
            fitted={name: fitted.model_dump() for name, fitted in FITTED.items()},
            sources=FIT_SOURCES,
            ensembles=ENSEMBLES,
            plugins=plugins_of("ensemble"),
            code=code_digest("fit_ensembles"),
        script:
            "../scripts/fit_ensembles.py"
