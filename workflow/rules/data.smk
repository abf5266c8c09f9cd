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
        data=study.data.model_dump(include={"root", "image_folders"}),
        folders=lambda wildcards: [
            folder_stamp(folder.path)
            for name, folder in study.data.image_folders.items()
            if name == wildcards.dataset
        ],
        code=code_digest("prepare_dataset"),
    script:
        "../scripts/prepare_dataset.py"
