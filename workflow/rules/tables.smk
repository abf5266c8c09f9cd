rule aggregate:
    input:
        **(
            {"store": f"{STUDY}/tracking.json", "runs": per_cell(f"{CELL}/runs.json")}
            if TRACKED
            else {
                "metrics": [
                    f"{cell}/metrics/{method}.json"
                    for cell in per_cell(CELL)
                    for method in config["methods"]
                ]
            }
        ),
    output:
        metrics=f"{STUDY}/tables/metrics.csv",
        csv=report(
            f"{STUDY}/tables/accuracy_at_budget.csv",
            caption="../report/accuracy_at_budget.rst",
            category="Tables",
        ),
        md=f"{STUDY}/tables/accuracy_at_budget.md",
        tex=f"{STUDY}/tables/accuracy_at_budget.tex",
    log:
        f"{STUDY}/logs/aggregate.log",
    benchmark:
        f"{STUDY}/benchmarks/aggregate.tsv"
    conda:
        ENVIRONMENT
    params:
        settings=settings(evaluation=["budgets", "protocols"]),
        methods=list(config["methods"]),
        code=code_digest("tables", "results"),
    script:
        "../scripts/aggregate.py"
