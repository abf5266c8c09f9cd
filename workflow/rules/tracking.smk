# MLflow. With `tracking: none` nothing asks for these rules' outputs.
rule start_tracking:
    output:
        store=f"{STUDY}/tracking.json",
        # Missing, it is made again and every cell is logged again; made again, it keeps its runs.
        database=[update(f"{STUDY}/mlflow.db")] if study.tracking == "sqlite" else [],
    log:
        f"{STUDY}/logs/start_tracking.log",
    benchmark:
        f"{STUDY}/benchmarks/start_tracking.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        tracking=without_password(study.tracking),
        study=STUDY_NAME,
        code=code_digest("start_tracking"),
    script:
        "../scripts/start_tracking.py"


rule track_cell:
    input:
        store=f"{STUDY}/tracking.json",
        backbone=f"{CELL}/backbone.json",
        ics=expand(f"{CELL}/ics/{{ics}}.json", ics=ICS, allow_missing=True),
        ensembles=[f"{CELL}/ensembles/{ics}/{name}.json" for ics, name in ENSEMBLES],
        metrics=expand(
            f"{CELL}/metrics/{{method}}.json",
            method=METHODS,
            allow_missing=True,
        ),
        curves=expand(
            f"{CELL}/curves/{{method}}.parquet",
            method=METHODS,
            allow_missing=True,
        ),
        networks=lambda wildcards: of_models(
            wildcards, [f"{CELL}/networks/{method}/network.json" for method in METHODS]
        ),
        # the networks refer to them
        weights=lambda wildcards: of_models(
            wildcards,
            [
                f"{CELL}/backbone.safetensors",
                *(f"{CELL}/ics/{ics}.safetensors" for ics in ICS),
                *(
                    f"{CELL}/ensembles/{ics}/{name}.safetensors"
                    for ics, name in ENSEMBLES
                ),
                *of_statics(f"{STATIC}/backbone.safetensors"),
            ],
        ),
        times=lambda wildcards: (
            [f"{CELL}/latency.json"] if TIMED and is_first(wildcards) else []
        ),
    output:
        runs=f"{CELL}/runs.json",
        figure=f"{CELL}/accuracy_cost.png",
    log:
        log_of("track_cell"),
    benchmark:
        benchmark_of("track_cell")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        study=STUDY_NAME,
        methods=METHODS,
        families=study.families,
        protocol=study.evaluation.protocols[0],
        code=code_digest("track_cell"),
    script:
        "../scripts/track_cell.py"
