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
        settings=settings(data=["validation_fraction"], backbone=None)
        | {"precision": config["precision"], "device": config["device"]},
        code=code_digest(
            *SHARED_CODE, "backbone", "classic", "training", "jobs.run_train_backbone"
        ),
    script:
        "../scripts/train_backbone.py"
