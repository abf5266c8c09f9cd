rule train_backbone:
    input:
        data=backbone_data,
        checked=CHECKED,
        teacher=teacher_of,
    output:
        weights=LAYOUT.backbone(CELL),
        metadata=metadata(LAYOUT.backbone(CELL)),
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
        **settings_of("train_backbone"),
        plugins=plugins_of("backbone"),
        code=code_digest("train_backbone"),
    script:
        "../scripts/train_backbone.py"
