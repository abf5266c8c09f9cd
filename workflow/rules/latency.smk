# Times of the first seed. The job takes all cores, because other jobs at the same time would change the times. It stores the
# times of each method in latency/<method>.json. These files are not outputs, because Snakemake removes outputs before it
# runs a job again.
if TIMED:

    rule measure_latency:
        input:
            data=ALL_DATA,
            weights=weights_of(CELL),
            predictions=[LAYOUT.predictions(CELL, ics, "validation") for ics in ICS],
            static_predictions=[
                LAYOUT.backbone_predictions(cell, "validation")
                for cell in STATIC_CELLS
            ],
            int8_predictions=int8_predictions_of(CELL, ["validation"]),
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
            mem_mb=doubling(4000),  # a job needs memory for one exported network per method
            runtime=doubling(30),
            gpu=GPUS,
        params:
            **settings_of("measure_latency"),
            plugins=METHOD,
            code=code_digest("measure_latency"),
        script:
            "../scripts/measure_latency.py"
