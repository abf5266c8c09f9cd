# Names every stage uses: the checked study, its folder, its cells.
import os
import re
from pathlib import Path
from snakemake.exceptions import WorkflowError
from ztw.errors import ZtwError, without_password
from ztw.progress import describe
from ztw.files import data_root
from ztw.study.config import check_study, read_config, study_name
from ztw.study.environment import search_path, settings_of_others
from ztw.catalogue.datasets import DATASETS
from ztw.study.plugins import plugins_with
from ztw.study.provenance import code_digest, file_stamp, folder_stamp
from ztw.study.training_settings import BackboneBuild

# What `--sdm conda` installs for every rule; scripts find ztw itself beside it.
ENVIRONMENT = Path(workflow.basedir).parent / "environment.yml"
# As `reproduce` does: a node of a cluster may set its own.
for name in settings_of_others(os.environ):
    del os.environ[name]

try:
    for file in workflow.overwrite_configfiles:
        read_config(
            file
        )  # as strictly as `reproduce` does: Snakemake takes a key twice
    study = check_study(config)
    # A study is named after its config file, and so is its folder.
    STUDY_NAME = study_name(
        (workflow.overwrite_configfiles or ["config/quick.yaml"])[-1]
    )
except ZtwError as error:
    raise WorkflowError(describe(error))

# Plugins may import what else a user has on this path; so may they in jobs of a cluster.
os.environ.update(
    PYTHONPATH=search_path(
        str(ENVIRONMENT.parent), os.environ, others=bool(study.plugins)
    )
)

# A password in `tracking` is for the jobs that log alone, in their environment: Snakemake writes params, the config
# that scripts get, and the config files it shows in the report into files.
os.environ.update(ZTW_TRACKING=study.tracking)
if (shown := without_password(study.tracking)) != study.tracking:
    config["tracking"] = shown
    workflow.configfiles.clear()

# The report's captions read it, defaults and all.
config["evaluation"] = study.evaluation.model_dump()

STUDY = f"results/{STUDY_NAME}"
CELL = f"{STUDY}/{{dataset}}/{{arch}}/seed{{seed}}"
TRACKED = study.tracking != "none"
METHODS = list(study.methods)
ENSEMBLES = sorted({(m.ics, m.ensemble) for m in study.methods.values() if m.ensemble})
FITTED = {name: study.ensembles.sets[name] for _, name in ENSEMBLES}
ICS = list(study.ics.sets)
# IC sets that train the backbone as well are a job each; the others share the pass over the frozen one.
JOINT = [name for name, ics in study.ics.sets.items() if ics.trains_backbone]
FROZEN = [name for name in ICS if name not in JOINT]
# Logits of the training images are wanted for ensembles only.
SPLITS = ["train"] if any(e.fit_on == "train" for e in FITTED.values()) else []
EVALUATED = ["validation"] if study.data.validation_fraction else []
EVALUATED += ["test"]
SPLITS += EVALUATED
# Networks without exits that stand beside every cell, each a cell of its own with a backbone alone.
STATICS = study.statics
STATIC = f"{STUDY}/{{dataset}}/{{static}}/seed{{seed}}"
TIMED = bool(study.latency.batch_sizes)
FIGURES = ["accuracy_cost", "exit_accuracy", "hindsight_improvability", "exit_shares"]
FIGURES += ["accuracy_time"] if TIMED else []
# One data set and architecture, as file names say it: an architecture's name may hold a slash.
FIGURE_CELLS = {
    "-".join([dataset, *Path(arch).parts]): (dataset, arch)
    for dataset, arch in study.cells
}


# What a reader looks at.
RESULTS = [f"{STUDY}/tables/accuracy_at_budget.{kind}" for kind in ("csv", "md", "tex")]
RESULTS += [
    f"{STUDY}/tables/{name}.csv" for name in ("comparison", "per_exit", "allowed_loss")
]
RESULTS += [f"{STUDY}/tables/latency.{kind}" for kind in ("csv", "md") if TIMED]
RESULTS += [
    f"{STUDY}/figures/{cell}-{figure}.png"
    for cell in FIGURE_CELLS
    for figure in FIGURES
]

# What rules depend on is given to them as plain values: a changed one runs the job again.
HARDWARE = study.model_dump(include={"precision", "device", "compile"})
EVALUATION = study.evaluation.model_dump()
METHOD_SETTINGS = {name: method.model_dump() for name, method in study.methods.items()}


wildcard_constraints:
    dataset="|".join(map(re.escape, study.datasets)),
    arch="|".join(map(re.escape, dict.fromkeys([*study.archs, *STATICS]))),
    seed="|".join(map(str, study.seeds)),
    ics="|".join(map(re.escape, ICS)),
    cell="|".join(map(re.escape, FIGURE_CELLS)),


def plugins_of(*kinds):
    """The plugins that a job loads, those with parts of these kinds: an edited one runs it again."""
    return plugins_with(study.plugins, kinds)


# Of a job that builds a cell's networks, and of one that decides with them.
NETWORK = plugins_of("backbone", "head")
METHOD = plugins_of("backbone", "head", "ensemble", "rule", "thresholds")


def cell_of(wildcards):
    """The sections of the study that hold in a cell, a static network's too."""
    return study.backbones[wildcards.dataset, wildcards.arch]


def images_of(wildcards):
    """What decides which images a job of a cell sees."""
    return cell_of(wildcards).data.model_dump(exclude={"root", "image_folders"})


def build_of(wildcards):
    """How a cell's backbone is built, beside its name."""
    return _build(cell_of(wildcards))


def _build(cell):
    return {key: getattr(cell.backbone, key) for key in BackboneBuild.model_fields}


def static_builds_of(wildcards):
    """The same of the static networks beside a cell, by their architecture."""
    return {arch: _build(study.backbones[wildcards.dataset, arch]) for arch in STATICS}


def of_statics(path, **others):
    """A path of STATIC, for every static network beside a cell."""
    return expand(path, static=STATICS, **others, allow_missing=True)


def sets_of(names):
    """Some IC sets as they are in a cell. A function of the wildcards."""
    return lambda wildcards: {
        name: cell_of(wildcards).ics.sets[name].model_dump() for name in names
    }


def per_cell(path):
    """A path with the wildcards of a cell, for every cell of the study."""
    return expand(path, dataset=study.datasets, arch=study.archs, seed=study.seeds)


# Cores of this machine, or, in the run of the one job that an executor has started, of that job. Without a number of
# cores a profile's executor runs the jobs, and a job gets four where the profile's set-threads says nothing else.
try:
    CORES, SHARED = workflow.cores, workflow.is_main_process
except WorkflowError:
    CORES, SHARED = 4, False


def share_of_cores(wildcards):
    """Threads of a job that computes: on one machine the cells that can run side by side share its cores."""
    return max(1, CORES // len(per_cell(CELL))) if SHARED else CORES


# GPUs of a job that computes with a network: where there is none to be had, nothing asks for them.
GPUS = 0 if study.device == "cpu" else 1


def doubling(first):
    """Memory in MB or time in minutes of a job: twice as much with every further try."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def log_of(rule):
    """Log of a rule that works on one cell."""
    return f"{STUDY}/logs/{rule}/{{dataset}}-{{arch}}-seed{{seed}}.log"


def benchmark_of(rule):
    """Snakemake's own measurement of a rule that works on one cell."""
    return f"{STUDY}/benchmarks/{rule}/{{dataset}}-{{arch}}-seed{{seed}}.tsv"


def of_cells():
    """Every file that the jobs of all cells write and others read, and the store of their runs."""
    files = [
        f"{CELL}/backbone.safetensors",
        *(f"{CELL}/ics/{i}.safetensors" for i in ICS),
    ]
    files += [
        f"{CELL}/predictions/{i}/{split}.safetensors" for i in ICS for split in SPLITS
    ]
    files += [f"{CELL}/ensembles/{ics}/{name}.safetensors" for ics, name in ENSEMBLES]
    for method in METHODS:
        files += [f"{CELL}/curves/{method}.parquet", f"{CELL}/metrics/{method}.json"]
        files += [f"{CELL}/answers/{method}.safetensors"]
        files += [f"{CELL}/networks/{method}/network.json"]
    files += [f"{CELL}/runs.json"] if TRACKED else []
    files += of_statics(f"{STATIC}/backbone.safetensors")
    files += of_statics(
        f"{STATIC}/backbone_predictions/{{split}}.safetensors", split=EVALUATED
    )
    store = [f"{STUDY}/mlflow.db"] if study.tracking == "sqlite" else []
    records = [
        f"{STUDY}/data/{dataset}/{split}.json"
        for dataset in study.datasets
        for split in ("train", "test")
    ]
    return store + records + per_cell(files)


def start_of(wildcards):
    """The cell's backbone, unless the set starts from scratch."""
    scratch = cell_of(wildcards).ics.sets[wildcards.ics].start == "scratch"
    return [] if scratch else f"{CELL}/backbone.safetensors"


def training_samples():
    """How many training images the ensembles want logits of; None is all."""
    wanted = [e.samples for e in FITTED.values() if e.fit_on == "train"]
    return None if None in wanted else max(wanted, default=None)


def timed_cells():
    """The files of `measure_latency`: the first seed of every data set and architecture."""
    cells = [
        f"{STUDY}/{dataset}/{arch}/seed{study.seeds[0]}"
        for dataset, arch in study.cells
    ]
    return [f"{cell}/latency.json" for cell in cells] if TIMED else []


def is_first(wildcards):
    """Whether a cell is of the first seed: the one that is timed, too."""
    return int(wildcards.seed) == study.seeds[0]


def of_models(wildcards, files):
    """Files that MLflow's models are made of, in the cells whose networks it gets."""
    wanted = study.tracked_models == "all" or (
        study.tracked_models == "first_seed" and is_first(wildcards)
    )
    return files if wanted else []


def curves_of(wildcards):
    """Every method's curves of one data set and architecture, of all seeds."""
    dataset, arch = FIGURE_CELLS[wildcards.cell]
    return expand(
        f"{CELL}/curves/{{method}}.parquet",
        dataset=dataset,
        arch=arch,
        method=METHODS,
        seed=study.seeds,
    )


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
