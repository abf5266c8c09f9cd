rule train_backbone:
    input:
        data=f"{STUDY}/data/{{dataset}}.json",
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
    params:
        settings=cell_settings(data=[*IMAGES, "root"], backbone=None),
        weights=lambda wildcards: file_stamp(
            CELLS[wildcards.dataset, wildcards.arch]["backbone"]["path"]
        ),
        code=code_digest(
            *SHARED_CODE,
            *BACKBONE_CODE,
            *TRAINING_CODE,
            "foreign",
            "training_jobs.run_train_backbone",
            "training_jobs._first_weights",
        ),
    script:
        "../scripts/train_backbone.py"
