# Measured time, of the first seed: alone on the machine, because neighbours would be measured, too. One job times the
# methods, a few in turn, and keeps what it has of each in latency/<method>.json: not among its outputs, which
# Snakemake would remove before it runs the job again.
if TIMED:

    rule measure_latency:
        input:
            data=ALL_DATA,
            weights=weights_of(CELL),
            predictions=[LAYOUT.predictions(CELL, ics, "validation") for ics in ICS],
        output:
            times=LAYOUT.latency(CELL),
        log:
            log_of("measure_latency"),
        benchmark:
            benchmark_of("measure_latency")
        conda:
            ENVIRONMENT
        threads: CORES
        resources:
            mem_mb=doubling(4000),  # an exported network more for every method
            runtime=doubling(30),
            gpu=GPUS,
        params:
            images=images_of,
            build=build_of,
            statics=static_builds_of,
            sets=sets_of(ICS),
            methods=METHOD_SETTINGS,
            evaluation=EVALUATION,
            latency=study.latency.model_dump(),
            hardware=HARDWARE,
            plugins=METHOD,
            code=code_digest("measure_latency"),
        script:
            "../scripts/measure_latency.py"
