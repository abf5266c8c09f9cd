# Training and test images have a record each, so that changed test images train nothing again.
rule prepare_dataset:
    output:
        record=LAYOUT.record("{dataset}", "{split}"),
    log:
        LAYOUT.log("prepare_dataset", "{dataset}", "{split}"),
    benchmark:
        LAYOUT.benchmark("prepare_dataset", "{dataset}", "{split}")
    wildcard_constraints:
        split="train|test",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        root=study.data.root,
        folder=lambda wildcards: job_settings.folder(study, wildcards.dataset),
        stamp=lambda wildcards: job_settings.image_stamps(
            study, wildcards.dataset, wildcards.split
        ),
        plugins=plugins_of("dataset"),
        code=code_digest("prepare_dataset"),
    script:
        "../scripts/prepare_dataset.py"
