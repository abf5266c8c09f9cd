# Names every stage uses: the checked config, the study's folder, the cells.
import os
import re
import yaml
from pathlib import Path
from snakemake.exceptions import WorkflowError
from ztw.study.config import check_config
from ztw.errors import ZtwError
from ztw.study.provenance import code_digest, file_stamp, folder_stamp

# What `--sdm conda` installs for every rule; scripts find ztw itself beside it.
ENVIRONMENT = Path(workflow.basedir).parent / "environment.yml"
os.environ.update(PYTHONPATH=str(ENVIRONMENT.parent))
SCHEMA = Path(workflow.basedir) / "schemas" / "config.schema.yaml"

try:
    config = check_config(config, yaml.safe_load(SCHEMA.read_text()))
except ZtwError as error:
    raise WorkflowError(str(error))

# (data set, architecture) -> the sections data, backbone and ics that hold there.
CELLS = config.pop("cells")

# A study is named after its config file, and so is its folder.
STUDY_NAME = Path((workflow.overwrite_configfiles or ["config/quick.yaml"])[-1]).stem
STUDY = f"results/{STUDY_NAME}"
CELL = f"{STUDY}/{{dataset}}/{{arch}}/seed{{seed}}"
TRACKED = config["tracking"] != "none"
ENSEMBLES = sorted(
    {(m["ics"], m["ensemble"]) for m in config["methods"].values() if m["ensemble"]}
)
FITTED = {name: config["ensembles"]["sets"][name] for _, name in ENSEMBLES}
ICS = config["ics"]["sets"]
# IC sets that train the trunk as well are a job each; the others share the pass over the frozen backbone.
OWN_TRUNK = [name for name, ics in ICS.items() if ics["training"] != "separate"]
FROZEN_TRUNK = [name for name in ICS if name not in OWN_TRUNK]
# Logits of the training images are wanted for ensembles only.
SPLITS = ["train"] if any(e["fit_on"] == "train" for e in FITTED.values()) else []
SPLITS += ["validation", "test"]
TIMED = bool(config["latency"]["batch_sizes"])
FIGURES = ["accuracy_cost", "exit_accuracy", "hindsight_improvability", "exit_shares"]
FIGURES += ["accuracy_time"] if TIMED else []
# One data set and architecture, as file names say it: an architecture's name may hold a slash.
FIGURE_CELLS = {
    "-".join([dataset, *Path(arch).parts]): (dataset, arch) for dataset, arch in CELLS
}


# What a reader looks at.
RESULTS = [f"{STUDY}/tables/accuracy_at_budget.csv"]
RESULTS += [
    f"{STUDY}/figures/{cell}-{figure}.png"
    for cell in FIGURE_CELLS
    for figure in FIGURES
]

# What every job that computes with a network relies on.
SHARED_CODE = ["device", "data", "augmentation", "streaming"]
SHARED_CODE += ["jobs.data_parts", "jobs._split"]
BACKBONE_CODE = ["backbone", "backbones", "classic", "torchvision_models"]
BACKBONE_CODE += ["jobs.empty_backbone"]
NETWORK_CODE = [*BACKBONE_CODE, "heads", "network", "costs", "jobs.attach"]
TRAINING_CODE = ["training", "training_jobs.make_recipe"]
RULE_CODE = ["rules", "evaluation", "thresholds", "threshold_choice", "per_exit"]
# What decides which images a training sees.
IMAGES = ["validation_from", "validation_fraction", "flip", "crop_padding"]
IMAGES += ["colour_jitter", "mean", "std"]
HARDWARE = {key: config[key] for key in ("precision", "device", "compile")}


wildcard_constraints:
    dataset="|".join(map(re.escape, config["datasets"])),
    arch="|".join(map(re.escape, config["archs"])),
    seed="|".join(map(str, config["seeds"])),
    ics="|".join(map(re.escape, ICS)),
    cell="|".join(map(re.escape, FIGURE_CELLS)),


def settings(**sections):
    """The part of the config a rule depends on; section=None takes all of it, a list some keys."""
    return part_of(config, sections)


def part_of(source, sections):
    return {
        name: source[name] if keys is None else {key: source[name][key] for key in keys}
        for name, keys in sections.items()
    }


def cell_settings(sets=None, **sections):
    """The same of a cell, overrides applied; sets: the IC sets it depends on. A function of the wildcards."""

    def chosen(wildcards):
        cell = CELLS[wildcards.dataset, wildcards.arch]
        names = [wildcards.ics] if sets == "own" else (sets or [])
        ics = {"sets": {name: cell["ics"]["sets"][name] for name in names}}
        part = part_of(cell, {"data": IMAGES, "backbone": ["shortcut"], **sections})
        return {**part, "ics": {**ics, **part.get("ics", {})}, **HARDWARE}

    return chosen


def per_cell(path):
    """A path with the wildcards of a cell, for every cell of the study."""
    return expand(
        path, dataset=config["datasets"], arch=config["archs"], seed=config["seeds"]
    )


def share_of_cores(wildcards):
    """Threads of a training job: the cores shared among the cells that can run side by side."""
    return max(1, workflow.cores // len(per_cell(CELL)))


def log_of(rule):
    """Log of a rule that works on one cell."""
    return f"{STUDY}/logs/{rule}/{{dataset}}-{{arch}}-seed{{seed}}.log"


def benchmark_of(rule):
    """Snakemake's own measurement of a rule that works on one cell."""
    return f"{STUDY}/benchmarks/{rule}/{{dataset}}-{{arch}}-seed{{seed}}.tsv"


def start_of(wildcards):
    """The cell's backbone, unless the set starts from scratch."""
    ics = CELLS[wildcards.dataset, wildcards.arch]["ics"]["sets"][wildcards.ics]
    return [] if ics["start"] == "scratch" else f"{CELL}/backbone.safetensors"


def training_samples():
    """How many training images the ensembles want logits of; None is all."""
    wanted = [e["samples"] for e in FITTED.values() if e["fit_on"] == "train"]
    return None if None in wanted else max(wanted, default=None)


def timed_cells():
    """The files of `measure_latency`: the first seed of every data set and architecture."""
    cells = [
        f"{STUDY}/{dataset}/{arch}/seed{config['seeds'][0]}" for dataset, arch in CELLS
    ]
    return [f"{cell}/latency.json" for cell in cells] if TIMED else []


def curves_of(wildcards):
    """Every method's curves of one data set and architecture, of all seeds."""
    dataset, arch = FIGURE_CELLS[wildcards.cell]
    return expand(
        f"{CELL}/curves/{{method}}.parquet",
        dataset=dataset,
        arch=arch,
        method=config["methods"],
        seed=config["seeds"],
    )
