rule train_backbone:
    input:
        data=training_data,
        checked=CHECKED,
    output:
        weights=f"{CELL}/backbone.safetensors",
        facts=f"{CELL}/backbone.json",
    log:
        log_of("train_backbone"),
    benchmark:
        benchmark_of("train_backbone")
    conda:
        ENVIRONMENT
    threads: share_of_cores
    resources:
        mem_mb=doubling(2500),
        runtime=doubling(120),
        gpu=GPUS,
    params:
        images=images_of,
        root=study.data.root,
        backbone=lambda wildcards: cell_of(wildcards).backbone.model_dump(),
        hardware=HARDWARE,
        weights=lambda wildcards: file_stamp(cell_of(wildcards).backbone.path),
        plugins=plugins_of("backbone"),
        code=code_digest("train_backbone"),
        checkpoints=f"{CELL}/checkpoints/backbone",
    script:
        "../scripts/train_backbone.py"
