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
        arch=arch_of,
        images=images_of,
        root=study.data.root,
        backbone=lambda wildcards: sections_of(wildcards).backbone.model_dump(),
        distillation=distillation_of,
        hardware=HARDWARE,
        weights=lambda wildcards: file_stamp(sections_of(wildcards).backbone.path),
        plugins=plugins_of("backbone"),
        code=code_digest("train_backbone"),
    script:
        "../scripts/train_backbone.py"
