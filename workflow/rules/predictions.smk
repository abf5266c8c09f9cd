rule predict:
    input:
        data=f"{STUDY}/data/{{dataset}}.json",
        backbone=f"{CELL}/backbone.safetensors",
        ics=expand(
            f"{CELL}/ics/{{ics}}.safetensors",
            ics=config["ics"]["sets"],
            allow_missing=True,
        ),
    output:
        expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.safetensors",
            ics=config["ics"]["sets"],
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
    params:
        settings=settings(
            data=["validation_fraction"], ics=None, ensembles=["samples"]
        )
        | {"precision": config["precision"], "device": config["device"]},
        splits=SPLITS,
        code=code_digest(
            *SHARED_CODE, "predictions", "jobs.load_network", "jobs.run_predict"
        ),
    script:
        "../scripts/predict.py"
