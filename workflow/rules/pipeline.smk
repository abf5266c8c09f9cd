# The cost of the pipeline itself, from Snakemake's benchmark files. Runs after all jobs that have one.
rule report_pipeline:
    input:
        RESULTS,
    output:
        csv=report(
            LAYOUT.table("pipeline"),
            caption="../report/pipeline.rst",
            category="Tables",
        ),
    log:
        LAYOUT.log("report_pipeline"),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        cores=CORES,
        code=code_digest("report_pipeline"),
    script:
        "../scripts/report_pipeline.py"


# The study's report. `reproduce` then writes Snakemake's own report, pipeline.html.
rule write_report:
    input:
        RESULTS,
        tables=[
            LAYOUT.table(name)
            for name in ("metrics", "differences", "devices", "pipeline")
        ],
        curves=[LAYOUT.curves(cell, method) for cell in CELLS for method in METHODS],
        galleries=[LAYOUT.gallery(title) for title in TITLES if GALLERY],
        # Files of the repository, see `aggregate`.
        page=[local(file) for file in PAGE],
    output:
        html=LAYOUT.report,
        config=LAYOUT.config,
    log:
        LAYOUT.log("write_report"),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        config=GIVEN,
        heading=heading(CONFIG_FILE),
        code=code_digest("write_report"),
    script:
        "../scripts/write_report.py"
