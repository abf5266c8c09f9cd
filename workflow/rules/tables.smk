rule aggregate:
    input:
        **(
            {"store": f"{STUDY}/tracking.json", "runs": per_cell(f"{CELL}/runs.json")}
            if TRACKED
            else {}
        ),
        metrics=[
            f"{cell}/metrics/{method}.json"
            for cell in per_cell(CELL)
            for method in METHODS
        ],
        differences=f"{STUDY}/tables/differences.csv",
        times=timed_cells(),
        # of the repository: stays where it is when a profile puts results elsewhere
        published=local(ENVIRONMENT.parent / "config" / "published.csv"),
    output:
        metrics=f"{STUDY}/tables/metrics.csv",
        csv=report(
            f"{STUDY}/tables/accuracy_at_budget.csv",
            caption="../report/accuracy_at_budget.rst",
            category="Tables",
        ),
        md=f"{STUDY}/tables/accuracy_at_budget.md",
        tex=f"{STUDY}/tables/accuracy_at_budget.tex",
        comparison=report(
            f"{STUDY}/tables/comparison.csv",
            caption="../report/comparison.rst",
            category="Tables",
        ),
        devices=report(
            f"{STUDY}/tables/devices.csv",
            caption="../report/devices.rst",
            category="Tables",
        ),
        per_exit=f"{STUDY}/tables/per_exit.csv",
        allowed_loss=f"{STUDY}/tables/allowed_loss.csv",
        times=[f"{STUDY}/tables/latency.{kind}" for kind in ("csv", "md") if TIMED],
    log:
        f"{STUDY}/logs/aggregate.log",
    benchmark:
        f"{STUDY}/benchmarks/aggregate.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        methods=METHODS,
        code=code_digest("aggregate"),
    script:
        "../scripts/aggregate.py"
