# The cost of the pipeline itself, from Snakemake's benchmark files. Runs last.
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
