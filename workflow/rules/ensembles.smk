if ENSEMBLES:

    rule fit_ensembles:
        input:
            sorted(
                {
                    file
                    for source, name in ENSEMBLES
                    for file in sources_of(source, FITTED[name].fit_on)
                }
            ),
        output:
            weights=[LAYOUT.ensemble(CELL, *names) for names in ENSEMBLES],
            metadata=[metadata(LAYOUT.ensemble(CELL, *names)) for names in ENSEMBLES],
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
            **settings_of("fit_ensembles"),
            plugins=plugins_of("ensemble"),
            code=code_digest("fit_ensembles"),
        script:
            "../scripts/fit_ensembles.py"
