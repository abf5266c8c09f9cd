rule plot_figures:
    input:
        metrics=LAYOUT.table("metrics"),
        differences=LAYOUT.table("differences"),
        curves=lambda wildcards: [
            LAYOUT.curves(Cell(*TITLES[wildcards.title], seed), method)
            for method in METHODS
            for seed in study.seeds
        ],
        times=[LAYOUT.table("latency")] if TIMED else [],
        frontier=[LAYOUT.table("frontier")] if FRONTIER else [],
    output:
        [
            report(
                LAYOUT.figure("{title}", figure),
                caption=f"../report/{figure}.rst",
                category="Figures",
                subcategory="{title}",
                labels={"figure": figure.replace("_", " ")},
            )
            for figure in FIGURES
        ],
        [LAYOUT.figure("{title}", figure, "pdf") for figure in FIGURES],
    log:
        LAYOUT.log("plot_figures", "{title}"),
    benchmark:
        LAYOUT.benchmark("plot_figures", "{title}")
    localrule: True
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        families=study.families,
        headline=study.headline,
        kinds=study.kinds,
        int8=study.int8_methods,
        seeds=study.seeds,
        dataset=lambda wildcards: TITLES[wildcards.title][0],
        arch=lambda wildcards: TITLES[wildcards.title][1],
        timed=TIMED,
        frontier=FRONTIER,
        code=code_digest("plot_figures"),
    script:
        "../scripts/plot_figures.py"
