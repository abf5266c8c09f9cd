rule prepare_dataset:
    output:
        record=f"{STUDY}/data/{{dataset}}.json",
    log:
        f"{STUDY}/logs/prepare_dataset/{{dataset}}.log",
    benchmark:
        f"{STUDY}/benchmarks/prepare_dataset/{{dataset}}.tsv"
    conda:
        ENVIRONMENT
    params:
        settings=settings(data=["root", "image_folders", "flip", "crop_padding"]),
        code=code_digest("fetch"),
    script:
        "../scripts/prepare_dataset.py"
