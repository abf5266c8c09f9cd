rule predict:
    input:
        data=f"{STUDY}/data/{{dataset}}.json",
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
    params:
        settings=cell_settings(sets=list(ICS), ics=["batch_size"]),
        samples=training_samples(),
        splits=SPLITS,
        code=code_digest(
            *SHARED_CODE,
            *NETWORK_CODE,
            "predictions",
            "jobs.load_network",
            "evaluation_jobs.run_predict",
        ),
    script:
        "../scripts/predict.py"
