# A study from logits starts here: it has no data sets, no networks and no trainings.
rule import_predictions:
    output:
        logits=predictions_of(CELL),
        metadata=map(metadata, predictions_of(CELL)),
    log:
        log_of("import_predictions"),
    benchmark:
        benchmark_of("import_predictions")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        sets=LOGITS,
        statics=STATIC_SETS,
        splits=SPLITS_OF,
        times=TIMED,
        timed=is_timed,
        stamps=stamps_of,
        code=code_digest("import_predictions"),
    script:
        "../scripts/import_predictions.py"


# Times at every budget, from the measured times of single exits in the files.
if TIMED:

    rule compute_latency:
        input:
            predictions=[
                LAYOUT.predictions(CELL, ics, split)
                for ics in ICS
                for split in EVALUATED
            ],
            costs=[metadata(LAYOUT.predictions(CELL, ics, "test")) for ics in ICS],
            ensembles=[LAYOUT.ensemble(CELL, *names) for names in ENSEMBLES],
        output:
            times=LAYOUT.latency(CELL),
        log:
            log_of("compute_latency"),
        benchmark:
            benchmark_of("compute_latency")
        localrule: True
        conda:
            ENVIRONMENT
        params:
            logits=LOGITS,
            methods=METHOD_SETTINGS,
            evaluation=EVALUATION,
            plugins=METHOD,
            code=code_digest("compute_latency"),
        script:
            "../scripts/compute_latency.py"
