BACKBONE_PREDICTIONS = [
    LAYOUT.backbone_predictions(CELL, split) for split in STATIC_SPLITS
]
INT8_PREDICTIONS = [
    LAYOUT.int8_predictions(CELL, "{network}", split) for split in EVALUATED
]


rule predict:
    input:
        data=ALL_DATA,
        backbone=LAYOUT.backbone(CELL),
        ics=[LAYOUT.ics(CELL, ics) for ics in ICS],
    output:
        logits=predictions_of(CELL),
        metadata=map(metadata, predictions_of(CELL)),
    log:
        log_of("predict"),
    benchmark:
        benchmark_of("predict")
    conda:
        ENVIRONMENT
    threads: share_of_cores
    resources:
        mem_mb=doubling(2500),
        runtime=doubling(30),
        gpu=GPUS,
    params:
        **settings_of("predict"),
        plugins=NETWORK,
        code=code_digest("predict"),
    script:
        "../scripts/predict.py"


# Predictions of the static networks (methods with `static`), each network once.
if STATICS:

    rule predict_backbone:
        input:
            data=ALL_DATA,
            backbone=LAYOUT.backbone(CELL),
        output:
            logits=BACKBONE_PREDICTIONS,
            metadata=map(metadata, BACKBONE_PREDICTIONS),
        log:
            log_of("predict_backbone"),
        benchmark:
            benchmark_of("predict_backbone")
        conda:
            ENVIRONMENT
        threads: share_of_cores
        resources:
            mem_mb=doubling(2500),
            runtime=doubling(30),
            gpu=GPUS,
        params:
            **settings_of("predict_backbone"),
            plugins=plugins_of("backbone"),
            code=code_digest("predict_backbone"),
        script:
            "../scripts/predict_backbone.py"


# Predictions of methods with `int8`, one job for each network: an IC set, or a static network in a cell of its own.
if INT8_SETS or INT8_STATICS:

    rule predict_int8:
        input:
            data=ALL_DATA,
            backbone=LAYOUT.backbone(CELL),
            ics=lambda wildcards: (
                [] if wildcards.network == ALONE else LAYOUT.ics(CELL, "{network}")
            ),
        output:
            logits=INT8_PREDICTIONS,
            metadata=map(metadata, INT8_PREDICTIONS),
        log:
            LAYOUT.log("predict_int8", CELL.title, "{network}"),
        benchmark:
            LAYOUT.benchmark("predict_int8", CELL.title, "{network}")
        wildcard_constraints:
            network="|".join(map(re.escape, [*INT8_SETS, ALONE])),
        conda:
            ENVIRONMENT
        threads: share_of_cores
        resources:
            mem_mb=doubling(4000),  # the calibration also holds activations
            runtime=doubling(30),
        params:
            **settings_of("predict_int8"),
            sets=lambda wildcards: job_settings.ic_sets(
                study, cell_of(wildcards), {wildcards.network} - {ALONE}
            ),
            plugins=NETWORK,
            code=code_digest("predict_int8"),
        script:
            "../scripts/predict_int8.py"
