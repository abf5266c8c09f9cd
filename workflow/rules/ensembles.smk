if ENSEMBLES:

    rule fit_ensembles:
        input:
            **{
                f"{ics}": f"{CELL}/predictions/{ics}/train.safetensors"
                for ics in sorted({ics for ics, _ in ENSEMBLES})
            },
        output:
            weights=[
                f"{CELL}/ensembles/{ics}-{kind}.safetensors" for ics, kind in ENSEMBLES
            ],
            facts=[f"{CELL}/ensembles/{ics}-{kind}.json" for ics, kind in ENSEMBLES],
        log:
            log_of("fit_ensembles"),
        benchmark:
            benchmark_of("fit_ensembles")
        conda:
            ENVIRONMENT
        threads: share_of_cores
        params:
            settings=settings(ensembles=["include_final"]),
            ensembles=ENSEMBLES,
            code=code_digest("ensembles", "jobs.run_fit_ensembles"),
        script:
            "../scripts/fit_ensembles.py"
