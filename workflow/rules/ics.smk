# One job for all sets of internal classifiers (ICs) on the frozen backbone. Sets with the same recipe share one pass.
if FROZEN:

    rule train_ics:
        input:
            data=training_data,
            checked=CHECKED,
            backbone=LAYOUT.backbone(CELL),
        output:
            weights=[LAYOUT.ics(CELL, ics) for ics in FROZEN],
            metadata=[metadata(LAYOUT.ics(CELL, ics)) for ics in FROZEN],
        log:
            log_of("train_ics"),
        benchmark:
            benchmark_of("train_ics")
        conda:
            ENVIRONMENT
        threads: share_of_cores
        resources:
            mem_mb=doubling(2500),
            runtime=doubling(120),
            gpu=GPUS,
        params:
            **settings_of("train_ics"),
            plugins=NETWORK,
            code=code_digest("train_ics"),
        script:
            "../scripts/train_ics.py"


# One job for each IC set that trains the backbone as well (joint or layer-wise).
if JOINT:

    rule train_network:
        input:
            data=training_data,
            checked=CHECKED,
            backbone=lambda wildcards: (
                LAYOUT.backbone(CELL)
                if sections_of(wildcards).ics.sets[wildcards.ics].start != "scratch"
                else []
            ),
        output:
            weights=LAYOUT.ics(CELL, "{ics}"),
            metadata=metadata(LAYOUT.ics(CELL, "{ics}")),
        log:
            LAYOUT.log("train_network", CELL.title, "{ics}"),
        benchmark:
            LAYOUT.benchmark("train_network", CELL.title, "{ics}")
        wildcard_constraints:
            ics="|".join(map(re.escape, JOINT)),
        conda:
            ENVIRONMENT
        threads: share_of_cores
        resources:
            mem_mb=doubling(2500),
            runtime=doubling(120),
            gpu=GPUS,
        params:
            **settings_of("train_network"),
            set=set_of,
            plugins=NETWORK,
            code=code_digest("train_network"),
        script:
            "../scripts/train_network.py"
