from ztw.files import data_root
from ztw.study.facts import DATASETS


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
    conda:
        ENVIRONMENT
    params:
        root=study.data.root,
        folder=lambda wildcards: folder_of(wildcards.dataset),
        images=lambda wildcards: image_stamps(wildcards.dataset, wildcards.split),
        code=code_digest("prepare_dataset"),
    script:
        "../scripts/prepare_dataset.py"


def folder_of(dataset):
    """A user's own folder of images, as the study says; None for a built-in data set."""
    folder = study.data.image_folders.get(dataset)
    return folder.model_dump() if folder else None


def image_stamps(dataset, split):
    """What changes with the files of a folder of images: those of a split, and for "test" all of them."""
    if folder := folder_of(dataset):
        place = folder["path"]
    elif dataset in DATASETS and DATASETS[dataset].streamed:
        place = data_root(study.data.root) / dataset
    else:  # checked by SHA-256
        return None
    return folder_stamp(
        place, ["train"] if split == "train" else ["train", "test", "val"]
    )


def training_data(wildcards):
    """The records a training reads: of the test images too, where the validation part is taken from them."""
    splits = (
        ["train", "test"]
        if cell_of(wildcards).data.validation_from == "test"
        else ["train"]
    )
    return [f"{STUDY}/data/{wildcards.dataset}/{split}.json" for split in splits]


# Every record of a data set, the training images' first.
ALL_DATA = [f"{STUDY}/data/{{dataset}}/{split}.json" for split in ("train", "test")]
# What a training waits for, without depending on it: no image is unreadable.
CHECKED = ancient(f"{STUDY}/data/{{dataset}}/test.json")
