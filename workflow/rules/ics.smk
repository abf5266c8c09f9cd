# All IC sets on the frozen backbone in one job: sets of one recipe share the pass over it.
if FROZEN_TRUNK:

    rule train_ics:
        input:
            data=f"{STUDY}/data/{{dataset}}.json",
            backbone=f"{CELL}/backbone.safetensors",
        output:
            weights=expand(
                f"{CELL}/ics/{{ics}}.safetensors", ics=FROZEN_TRUNK, allow_missing=True
            ),
            facts=expand(
                f"{CELL}/ics/{{ics}}.json", ics=FROZEN_TRUNK, allow_missing=True
            ),
        log:
            log_of("train_ics"),
        benchmark:
            benchmark_of("train_ics")
        conda:
            ENVIRONMENT
        threads: share_of_cores
        params:
            settings=cell_settings(sets=FROZEN_TRUNK),
            sets=FROZEN_TRUNK,
            code=code_digest(
                *SHARED_CODE,
                *NETWORK_CODE,
                *TRAINING_CODE,
                "training_jobs.run_train_ics",
            ),
        script:
            "../scripts/train_ics.py"


# An IC set that trains the trunk as well: jointly, or layer after layer.
if OWN_TRUNK:

    rule train_network:
        input:
            data=f"{STUDY}/data/{{dataset}}.json",
            backbone=start_of,
        output:
            weights=f"{CELL}/ics/{{ics}}.safetensors",
            facts=f"{CELL}/ics/{{ics}}.json",
        log:
            f"{STUDY}/logs/train_network/{{dataset}}-{{arch}}-seed{{seed}}-{{ics}}.log",
        benchmark:
            f"{STUDY}/benchmarks/train_network/{{dataset}}-{{arch}}-seed{{seed}}-{{ics}}.tsv"
        wildcard_constraints:
            ics="|".join(map(re.escape, OWN_TRUNK)),
        conda:
            ENVIRONMENT
        threads: share_of_cores
        params:
            settings=cell_settings(sets="own"),
            code=code_digest(
                *SHARED_CODE,
                *NETWORK_CODE,
                *TRAINING_CODE,
                "regimes",
                "training_jobs.run_train_network",
            ),
        script:
            "../scripts/train_network.py"
