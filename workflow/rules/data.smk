# A record for the training and one for the test images: other test images train nothing again.
rule prepare_dataset:
    output:
        record=f"{STUDY}/data/{{dataset}}/{{split}}.json",
    log:
        f"{STUDY}/logs/prepare_dataset/{{dataset}}-{{split}}.log",
    benchmark:
        f"{STUDY}/benchmarks/prepare_dataset/{{dataset}}-{{split}}.tsv"
    wildcard_constraints:
        split="train|test",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        root=study.data.root,
        folder=lambda wildcards: folder_of(wildcards.dataset),
        images=lambda wildcards: image_stamps(wildcards.dataset, wildcards.split),
        plugins=plugins_of("dataset"),
        code=code_digest("prepare_dataset"),
    script:
        "../scripts/prepare_dataset.py"
