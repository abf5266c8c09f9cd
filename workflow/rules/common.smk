# Names every stage uses: the checked config, the study's folder, the cells.
import os
import yaml
from pathlib import Path
from snakemake.exceptions import WorkflowError
from ztw.config import check_config
from ztw.errors import ZtwError
from ztw.provenance import code_digest, folder_stamp

# What `--sdm conda` installs for every rule; scripts find ztw itself beside it.
ENVIRONMENT = Path(workflow.basedir).parent / "environment.yml"
os.environ.update(PYTHONPATH=str(ENVIRONMENT.parent))
SCHEMA = Path(workflow.basedir) / "schemas" / "config.schema.yaml"

try:
    config = check_config(config, yaml.safe_load(SCHEMA.read_text()))
except ZtwError as error:
    raise WorkflowError(str(error))

# A study is named after its config file, and so is its folder.
STUDY_NAME = Path((workflow.overwrite_configfiles or ["config/quick.yaml"])[-1]).stem
STUDY = f"results/{STUDY_NAME}"
CELL = f"{STUDY}/{{dataset}}/{{arch}}/seed{{seed}}"
TRACKED = config["tracking"] != "none"
ENSEMBLES = sorted(
    {(m["ics"], m["ensemble"]) for m in config["methods"].values() if m["ensemble"]}
)
SPLITS = ["train", "validation", "test"]
FIGURES = ["accuracy_cost", "exit_accuracy", "hindsight_improvability", "exit_shares"]


# What every job that computes with a network relies on.
SHARED_CODE = [
    "device",
    "data",
    "jobs._training_parts",
    "jobs._compute",
    "jobs._recipe",
]


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    arch="|".join(config["archs"]),
    seed="|".join(map(str, config["seeds"])),


def settings(**sections):
    """The part of the config a rule depends on; section=None takes all of it, a list some keys."""
    return {
        name: config[name] if keys is None else {key: config[name][key] for key in keys}
        for name, keys in sections.items()
    }


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
