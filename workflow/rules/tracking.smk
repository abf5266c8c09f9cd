# Runs in MLflow. With `tracking: none` no rule needs these outputs.
rule start_tracking:
    output:
        store=LAYOUT.store,
        # A missing output is created again, and then every cell is logged again. `update` keeps an existing database.
        database=[update(LAYOUT.database)] if study.tracking == "sqlite" else [],
    log:
        LAYOUT.log("start_tracking"),
    benchmark:
        LAYOUT.benchmark("start_tracking")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        tracking=without_password(study.tracking),
        command=f"make reproduce CONFIG={(workflow.overwrite_configfiles or ['config/quick.yaml'])[-1]}",
        evaluation=EVALUATION,
        timed=TIMED,
        code=code_digest("start_tracking"),
    script:
        "../scripts/start_tracking.py"


rule track_cell:
    input:
        store=LAYOUT.store,
        metadata=parts_of(CELL),
        metrics=[LAYOUT.metrics(CELL, method) for method in METHODS],
        curves=[LAYOUT.curves(CELL, method) for method in METHODS],
        # A file network.json refers to files of weights.
        models=lambda wildcards: (
            [*(LAYOUT.network(CELL, m) for m in METHODS), *weights_of(CELL)]
            if logs_models(wildcards)
            else []
        ),
        times=lambda wildcards: [LAYOUT.latency(CELL)] if is_timed(wildcards) else [],
    output:
        runs=LAYOUT.runs(CELL),
        figure=LAYOUT.cell_figure(CELL),
    log:
        log_of("track_cell"),
    benchmark:
        benchmark_of("track_cell")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        methods=METHODS,
        sets=ICS,
        from_logits=bool(LOGITS),
        ensembles=ENSEMBLES,
        families=study.families,
        protocol=study.evaluation.protocols[0],
        timed=is_timed,
        models=logs_models,
        code=code_digest("track_cell"),
    script:
        "../scripts/track_cell.py"
