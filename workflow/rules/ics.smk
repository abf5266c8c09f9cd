# All IC sets on the frozen backbone in one job: sets of one recipe share the pass over it.
if FROZEN:

    rule train_ics:
        input:
            data=training_data,
            checked=CHECKED,
            backbone=f"{CELL}/backbone.safetensors",
        output:
            weights=expand(
                f"{CELL}/ics/{{ics}}.safetensors", ics=FROZEN, allow_missing=True
            ),
            facts=expand(f"{CELL}/ics/{{ics}}.json", ics=FROZEN, allow_missing=True),
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
            images=images_of,
            build=build_of,
            sets=sets_of(FROZEN),
            hardware=HARDWARE,
            plugins=NETWORK,
            code=code_digest("train_ics"),
            checkpoints=f"{CELL}/checkpoints/ics",
        script:
            "../scripts/train_ics.py"


# An IC set that trains the backbone as well: jointly, or layer after layer.
if JOINT:

    rule train_network:
        input:
            data=training_data,
            checked=CHECKED,
            backbone=start_of,
        output:
            weights=f"{CELL}/ics/{{ics}}.safetensors",
            facts=f"{CELL}/ics/{{ics}}.json",
        log:
            f"{STUDY}/logs/train_network/{{dataset}}-{{arch}}-seed{{seed}}-{{ics}}.log",
        benchmark:
            f"{STUDY}/benchmarks/train_network/{{dataset}}-{{arch}}-seed{{seed}}-{{ics}}.tsv"
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
            images=images_of,
            build=build_of,
            sets=lambda wildcards: sets_of([wildcards.ics])(wildcards),
            hardware=HARDWARE,
            plugins=NETWORK,
            code=code_digest("train_network"),
            checkpoints=f"{CELL}/checkpoints/ics-{{ics}}",
        script:
            "../scripts/train_network.py"
