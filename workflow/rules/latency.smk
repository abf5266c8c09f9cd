# Measured time, of the first seed: alone on the machine, because neighbours would be measured, too.
if TIMED:

    rule measure_latency:
        input:
            data=f"{STUDY}/data/{{dataset}}.json",
            backbone=f"{CELL}/backbone.safetensors",
            ics=expand(f"{CELL}/ics/{{ics}}.safetensors", ics=ICS, allow_missing=True),
            predictions=expand(
                f"{CELL}/predictions/{{ics}}/validation.safetensors",
                ics=ICS,
                allow_missing=True,
            ),
            ensembles=[
                f"{CELL}/ensembles/{ics}/{name}.safetensors" for ics, name in ENSEMBLES
            ],
        output:
            times=f"{CELL}/latency.json",
        log:
            log_of("measure_latency"),
        benchmark:
            benchmark_of("measure_latency")
        conda:
            ENVIRONMENT
        threads: workflow.cores
        params:
            settings=cell_settings(sets=list(ICS)),
            study=settings(methods=None, evaluation=None, latency=None),
            splits=["validation"],
            ensembles=ENSEMBLES,
            code=code_digest(
                *NETWORK_CODE,
                *RULE_CODE,
                "inference",
                "ensembles",
                "latency.run_measure_latency",
                "latency.time_in_turn",
                "latency._summary",
                "latency.rules_at_budgets",
                "latency.take_batches",
            ),
        script:
            "../scripts/measure_latency.py"
