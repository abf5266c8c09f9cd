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
        expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.safetensors",
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
        code=code_digest("predict"),
    script:
        "../scripts/predict.py"
