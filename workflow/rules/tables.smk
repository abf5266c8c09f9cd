rule aggregate:
    input:
        **({"store": LAYOUT.store, "runs": map(LAYOUT.runs, CELLS)} if TRACKED else {}),
        metrics=[LAYOUT.metrics(cell, method) for cell in CELLS for method in METHODS],
        differences=LAYOUT.table("differences"),
        times=map(LAYOUT.latency, TIMED_CELLS),
        # A file of the repository: `local` keeps its path when a profile moves the results.
        published=local(PUBLISHED),
    output:
        metrics=LAYOUT.table("metrics"),
        csv=report(
            LAYOUT.table("accuracy_at_budget"),
            caption="../report/accuracy_at_budget.rst",
            category="Tables",
        ),
        md=LAYOUT.table("accuracy_at_budget", "md"),
        tex=LAYOUT.table("accuracy_at_budget", "tex"),
        comparison=[
            report(table, caption="../report/comparison.rst", category="Tables")
            for table in COMPARISON
        ],
        devices=report(
            LAYOUT.table("devices"),
            caption="../report/devices.rst",
            category="Tables",
        ),
        per_exit=LAYOUT.table("per_exit"),
        allowed_loss=LAYOUT.table("allowed_loss"),
        training=LAYOUT.table("training"),
        times=[LAYOUT.table("latency", kind) for kind in ("csv", "md") if TIMED],
    log:
        LAYOUT.log("aggregate"),
    benchmark:
        LAYOUT.benchmark("aggregate")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        kinds=study.kinds,
        cells=CELL_NAMES,
        timed=[(cell.dataset, cell.arch, cell.seed) for cell in TIMED_CELLS],
        tracked=TRACKED,
        code=code_digest("aggregate"),
    script:
        "../scripts/aggregate.py"


if FRONTIER:

    rule compare_frontier:
        input:
            metrics=[
                LAYOUT.metrics(cell, method) for cell in CELLS for method in METHODS
            ],
            curves=[LAYOUT.curves(cell, method) for cell in CELLS for method in METHODS],
            correct=[
                LAYOUT.correct(cell, method) for cell in CELLS for method in METHODS
            ],
            times=[LAYOUT.table("latency")] if TIMED else [],
        output:
            csv=report(
                LAYOUT.table("frontier"),
                caption="../report/frontier.rst",
                category="Tables",
            ),
            md=LAYOUT.table("frontier", "md"),
        log:
            LAYOUT.log("compare_frontier"),
        benchmark:
            LAYOUT.benchmark("compare_frontier")
        localrule: True
        conda:
            ENVIRONMENT
        params:
            kinds=study.kinds,
            evaluation=EVALUATION,
            cells=CELL_NAMES,
            timed=sorted({(cell.dataset, cell.arch) for cell in TIMED_CELLS}),
            int8=study.int8_methods,
            code=code_digest("compare_frontier"),
        script:
            "../scripts/compare_frontier.py"
