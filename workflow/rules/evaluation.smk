# All methods of a cell in one job: a sweep takes a fraction of a second, a process more.
rule evaluate:
    input:
        data=f"{STUDY}/data/{{dataset}}/train.json",
        backbone=f"{CELL}/backbone.safetensors",
        ics=expand(f"{CELL}/ics/{{ics}}.safetensors", ics=ICS, allow_missing=True),
        predictions=expand(
            f"{CELL}/predictions/{{ics}}/{{split}}.safetensors",
            ics=ICS,
            split=EVALUATED,
            allow_missing=True,
        ),
        ensembles=[
            f"{CELL}/ensembles/{ics}/{name}.safetensors" for ics, name in ENSEMBLES
        ],
        statics=of_statics(f"{STATIC}/backbone.safetensors"),
        static_predictions=of_statics(
            f"{STATIC}/backbone_predictions/{{split}}.safetensors", split=EVALUATED
        ),
    output:
        curves=expand(
            f"{CELL}/curves/{{method}}.parquet",
            method=METHODS,
            allow_missing=True,
        ),
        metrics=expand(
            f"{CELL}/metrics/{{method}}.json",
            method=METHODS,
            allow_missing=True,
        ),
        answers=expand(
            f"{CELL}/answers/{{method}}.safetensors",
            method=METHODS,
            allow_missing=True,
        ),
        # for `ztw.load`: refers to the weights above
        networks=expand(
            f"{CELL}/networks/{{method}}/network.json",
            method=METHODS,
            allow_missing=True,
        ),
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
        build=build_of,
        statics=static_builds_of,
        sets=sets_of(ICS),
        methods=METHOD_SETTINGS,
        evaluation=EVALUATION,
        images=images_of,
        ensembles=ENSEMBLES,
        splits=EVALUATED,
        plugins=METHOD,
        code=code_digest("evaluate"),
    script:
        "../scripts/evaluate.py"


# Which differences between methods are more than noise: over the test images all seeds share.
rule compare_methods:
    input:
        answers=[
            f"{cell}/answers/{method}.safetensors"
            for cell in per_cell(CELL)
            for method in METHODS
        ],
    output:
        csv=report(
            f"{STUDY}/tables/differences.csv",
            caption="../report/differences.rst",
            category="Tables",
        ),
    log:
        f"{STUDY}/logs/compare_methods.log",
    benchmark:
        f"{STUDY}/benchmarks/compare_methods.tsv"
    conda:
        ENVIRONMENT
    params:
        evaluation=EVALUATION,
        methods=METHODS,
        cells=[
            (dataset, arch, seed)
            for dataset, arch in study.cells
            for seed in study.seeds
        ],
        code=code_digest("compare_methods"),
    script:
        "../scripts/compare_methods.py"
