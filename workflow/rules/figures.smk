rule plot_figures:
    input:
        metrics=f"{STUDY}/tables/metrics.csv",
        curves=[
            file
            for method in config["methods"]
            for file in expand(
                f"{CELL}/curves/{method}.parquet",
                seed=config["seeds"],
                allow_missing=True,
            )
        ],
    output:
        [
            report(
                f"{STUDY}/figures/{{dataset}}-{{arch}}-{figure}.png",
                caption=f"../report/{figure}.rst",
                category="Figures",
                subcategory="{dataset}, {arch}",
                labels={"figure": figure.replace("_", " ")},
            )
            for figure in FIGURES
        ],
        [f"{STUDY}/figures/{{dataset}}-{{arch}}-{figure}.pdf" for figure in FIGURES],
    log:
        f"{STUDY}/logs/plot_figures/{{dataset}}-{{arch}}.log",
    benchmark:
        f"{STUDY}/benchmarks/plot_figures/{{dataset}}-{{arch}}.tsv"
    conda:
        ENVIRONMENT
    params:
        settings=settings(evaluation=["budgets", "protocols"]),
        methods=list(config["methods"]),
        stem=f"{STUDY}/figures/{{dataset}}-{{arch}}",
        code=code_digest("figures"),
    script:
        "../scripts/plot_figures.py"
