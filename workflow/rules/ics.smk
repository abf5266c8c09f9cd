# All IC sets of a cell in one job: they share the pass over the frozen backbone.
rule train_ics:
    input:
        data=f"{STUDY}/data/{{dataset}}.json",
        backbone=f"{CELL}/backbone.safetensors",
    output:
        weights=expand(
            f"{CELL}/ics/{{ics}}.safetensors",
            ics=config["ics"]["sets"],
            allow_missing=True,
        ),
        facts=expand(
            f"{CELL}/ics/{{ics}}.json", ics=config["ics"]["sets"], allow_missing=True
        ),
    log:
        log_of("train_ics"),
    benchmark:
        benchmark_of("train_ics")
    conda:
        ENVIRONMENT
    threads: share_of_cores
    params:
        settings=settings(data=["validation_fraction"], ics=None)
        | {"precision": config["precision"], "device": config["device"]},
        code=code_digest(
            *SHARED_CODE, "heads", "network", "costs", "training", "jobs.run_train_ics"
        ),
    script:
        "../scripts/train_ics.py"
