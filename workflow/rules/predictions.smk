rule predict:
    input:
        data=ALL_DATA,
        backbone=f"{CELL}/backbone.safetensors",
        ics=expand(
            f"{CELL}/ics/{{ics}}.safetensors",
            ics=ICS,
            allow_missing=True,
        ),
    output:
        logits=expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.safetensors",
            ics=ICS,
            split=SPLITS,
            allow_missing=True,
        ),
        facts=expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.json",
            ics=ICS,
            split=SPLITS,
            allow_missing=True,
        ),
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
        images=images_of,
        build=build_of,
        sets=sets_of(ICS),
        batch_size=lambda wildcards: cell_of(wildcards).ics.batch_size,
        samples=training_samples(),
        splits=SPLITS,
        hardware=HARDWARE,
        plugins=NETWORK,
        code=code_digest("predict"),
    script:
        "../scripts/predict.py"


# Of networks without exits that stand beside the cells (`static` rows), each once.
if STATICS:

    rule predict_backbone:
        input:
            data=ALL_DATA,
            backbone=f"{CELL}/backbone.safetensors",
        output:
            logits=expand(
                f"{CELL}/backbone_predictions/{{split}}.safetensors",
                split=EVALUATED,
                allow_missing=True,
            ),
            facts=expand(
                f"{CELL}/backbone_predictions/{{split}}.json",
                split=EVALUATED,
                allow_missing=True,
            ),
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
            images=images_of,
            build=build_of,
            batch_size=lambda wildcards: cell_of(wildcards).ics.batch_size,
            splits=EVALUATED,
            hardware=HARDWARE,
            plugins=plugins_of("backbone"),
            code=code_digest("predict_backbone"),
        script:
            "../scripts/predict_backbone.py"
