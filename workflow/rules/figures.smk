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


if GALLERY:

    # Example images of the first seed that leave first, in the middle and last.
    rule draw_gallery:
        input:
            record=lambda wildcards: LAYOUT.record(TITLES[wildcards.title][0], "test"),
            metrics=lambda wildcards: [
                LAYOUT.metrics(first_cell(wildcards), method) for method in GALLERY
            ],
            predictions=lambda wildcards: predictions_of(first_cell(wildcards)),
            ensembles=lambda wildcards: [
                LAYOUT.ensemble(first_cell(wildcards), *names) for names in ENSEMBLES
            ],
        output:
            png=report(
                LAYOUT.figure("{title}", "gallery"),
                caption="../report/gallery.rst",
                category="Figures",
                subcategory="{title}",
                labels={"figure": "gallery"},
            ),
            pdf=LAYOUT.figure("{title}", "gallery", "pdf"),
            gallery=LAYOUT.gallery("{title}"),
        log:
            LAYOUT.log("draw_gallery", "{title}"),
        benchmark:
            LAYOUT.benchmark("draw_gallery", "{title}")
        localrule: True
        conda:
            ENVIRONMENT
        params:
            evaluation=EVALUATION,
            methods=GALLERY,
            dataset=lambda wildcards: TITLES[wildcards.title][0],
            arch=lambda wildcards: TITLES[wildcards.title][1],
            seed=study.seeds[0],
            images=lambda wildcards: job_settings.images(study, first_cell(wildcards)),
            plugins=METHOD,
            code=code_digest("draw_gallery"),
        script:
            "../scripts/draw_gallery.py"
