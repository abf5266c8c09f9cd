rule plot_figures:
    input:
        metrics=f"{STUDY}/tables/metrics.csv",
        curves=curves_of,
        times=[f"{STUDY}/tables/latency.csv"] if TIMED else [],
    output:
        [
            report(
                f"{STUDY}/figures/{{cell}}-{figure}.png",
                caption=f"../report/{figure}.rst",
                category="Figures",
                subcategory="{cell}",
                labels={"figure": figure.replace("_", " ")},
            )
            for figure in FIGURES
        ],
        [f"{STUDY}/figures/{{cell}}-{figure}.pdf" for figure in FIGURES],
    log:
        f"{STUDY}/logs/plot_figures/{{cell}}.log",
    benchmark:
        f"{STUDY}/benchmarks/plot_figures/{{cell}}.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        families=study.families,
        names=lambda wildcards: FIGURE_CELLS[wildcards.cell],
        stem=f"{STUDY}/figures/{{cell}}",
        code=code_digest("plot_figures"),
    script:
        "../scripts/plot_figures.py"
