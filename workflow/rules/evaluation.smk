# All methods of a cell in one job: a sweep takes a fraction of a second, a process more.
rule evaluate:
    input:
        data=f"{STUDY}/data/{{dataset}}.json",
        backbone=f"{CELL}/backbone.safetensors",
        ics=expand(
            f"{CELL}/ics/{{ics}}.safetensors",
            ics=config["ics"]["sets"],
            allow_missing=True,
        ),
        predictions=expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.safetensors",
            ics=config["ics"]["sets"],
            split=SPLITS[1:],
            allow_missing=True,
        ),
        ensembles=[
            f"{CELL}/ensembles/{ics}-{kind}.safetensors" for ics, kind in ENSEMBLES
        ],
    output:
        curves=expand(
            f"{CELL}/curves/{{method}}.parquet",
            method=config["methods"],
            allow_missing=True,
        ),
        metrics=expand(
            f"{CELL}/metrics/{{method}}.json",
            method=config["methods"],
            allow_missing=True,
        ),
        figure=f"{CELL}/accuracy_cost.png",
    log:
        log_of("evaluate"),
    benchmark:
        benchmark_of("evaluate")
    conda:
        ENVIRONMENT
    threads: share_of_cores
    params:
        settings=settings(ics=None, methods=None, evaluation=None),
        splits=SPLITS[1:],
        ensembles=ENSEMBLES,
        code=code_digest("evaluation", "rules", "methods", "costs", "jobs.load_network"),
    script:
        "../scripts/evaluate.py"
