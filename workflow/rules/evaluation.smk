# One job for all methods of a cell, because a sweep takes less time than the start of a process.
rule evaluate:
    input:
        data=[] if LOGITS else LAYOUT.record("{dataset}", "train"),
        weights=weights_of(CELL),
        predictions=[
            LAYOUT.predictions(CELL, ics, split) for ics in ICS for split in EVALUATED
        ],
        # The costs of logits from files
        costs=[metadata(LAYOUT.predictions(CELL, ics, "test")) for ics in LOGITS],
        static_predictions=[
            LAYOUT.backbone_predictions(cell, split)
            for cell in STATIC_CELLS
            for split in EVALUATED
        ],
        int8_predictions=int8_predictions_of(CELL, EVALUATED),
    output:
        curves=[LAYOUT.curves(CELL, method) for method in METHODS],
        metrics=[LAYOUT.metrics(CELL, method) for method in METHODS],
        correct=[LAYOUT.correct(CELL, method) for method in METHODS],
        networks=[LAYOUT.network(CELL, method) for method in METHODS if not LOGITS],
    log:
        log_of("evaluate"),
    benchmark:
        benchmark_of("evaluate")
    conda:
        ENVIRONMENT
    threads: share_of_cores
    resources:
        mem_mb=doubling(2000),
        runtime=doubling(30),
    params:
        **settings_of("evaluate"),
        plugins=METHOD,
        code=code_digest("evaluate"),
    script:
        "../scripts/evaluate.py"


# Paired bootstrap: which differences between methods are more than noise? All seeds share the test images.
rule compare_methods:
    input:
        correct=[LAYOUT.correct(cell, method) for cell in CELLS for method in METHODS],
    output:
        csv=report(
            LAYOUT.table("differences"),
            caption="../report/differences.rst",
            category="Tables",
        ),
    log:
        LAYOUT.log("compare_methods"),
    benchmark:
        LAYOUT.benchmark("compare_methods")
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        methods=METHODS,
        cells=CELL_NAMES,
        code=code_digest("compare_methods"),
    script:
        "../scripts/compare_methods.py"
