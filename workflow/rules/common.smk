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
from ztw.study.layout import Cell, Layout, figure_title, metadata, PUBLISHED
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
# Scripts find the files of the study by it.
config["study"] = STUDY_NAME

LAYOUT = Layout(Path("results") / STUDY_NAME)
# The cell of a rule, by its wildcards.
CELL = Cell("{dataset}", "{arch}", "{seed}")
CELLS = [Cell(*names, seed) for names in study.cells for seed in study.seeds]
CELL_NAMES = [(cell.dataset, cell.arch, cell.seed) for cell in CELLS]
METHODS = list(study.methods)
ICS = list(study.ics.sets)
# IC sets that train the backbone as well are a job each; the others share the pass over the frozen one.
JOINT = [name for name, ics in study.ics.sets.items() if ics.trains_backbone]
FROZEN = [name for name in ICS if name not in JOINT]
# (IC set, ensemble) of the methods, and how the ensembles are fitted.
ENSEMBLES = sorted({(m.ics, m.ensemble) for m in study.methods.values() if m.ensemble})
FITTED = {name: study.ensembles.sets[name] for _, name in ENSEMBLES}
EVALUATED = list(study.data.evaluated)
# Logits of the training images are wanted for ensembles only.
SPLITS = ["train"] if any(e.fit_on == "train" for e in FITTED.values()) else []
SPLITS += EVALUATED
# Networks without exits that stand beside every cell, each a cell of its own with a backbone alone.
STATICS = study.statics
STATIC_CELLS = [CELL.with_arch(arch) for arch in STATICS]
TRACKED = study.tracking != "none"
# Measured are the times of the first seed of every data set and architecture.
TIMED = bool(study.latency.batch_sizes)
TIMED_CELLS = [cell for cell in CELLS if TIMED and cell.seed == study.seeds[0]]
FIGURES = ["accuracy_cost", "exit_accuracy", "hindsight_improvability", "exit_shares"]
FIGURES += ["accuracy_time"] if TIMED else []
# One data set and architecture, as file names say it.
TITLES = {figure_title(*names): names for names in study.cells}


# What a reader looks at.
RESULTS = [LAYOUT.table("accuracy_at_budget", kind) for kind in ("csv", "md", "tex")]
RESULTS += [LAYOUT.table(name) for name in ("comparison", "per_exit", "allowed_loss")]
RESULTS += [LAYOUT.table("latency", kind) for kind in ("csv", "md") if TIMED]
RESULTS += [LAYOUT.figure(title, figure) for title in TITLES for figure in FIGURES]

# What rules depend on is given to them as plain values: a changed one runs the job again.
HARDWARE = study.model_dump(include={"precision", "device", "compile"})
EVALUATION = study.evaluation.model_dump()
METHOD_SETTINGS = {name: method.model_dump() for name, method in study.methods.items()}


wildcard_constraints:
    dataset="|".join(map(re.escape, study.datasets)),
    arch="|".join(map(re.escape, dict.fromkeys([*study.archs, *STATICS]))),
    seed="|".join(map(str, study.seeds)),
    ics="|".join(map(re.escape, ICS)),
    title="|".join(map(re.escape, TITLES)),


def plugins_of(*kinds):
    """The plugins that a job loads, those with parts of these kinds: an edited one runs it again."""
    return plugins_with(study.plugins, kinds)


# Of a job that builds a cell's networks, and of one that decides with them.
NETWORK = plugins_of("backbone", "head")
METHOD = plugins_of("backbone", "head", "ensemble", "rule", "thresholds")


def sections_of(wildcards):
    """The sections of the study that hold in a cell, a static network's too."""
    return study.backbones[wildcards.dataset, wildcards.arch]


def images_of(wildcards):
    """What decides which images a job of a cell sees."""
    return sections_of(wildcards).data.model_dump(exclude={"root", "image_folders"})


def _build(sections):
    return {key: getattr(sections.backbone, key) for key in BackboneBuild.model_fields}


def build_of(wildcards):
    """How a cell's backbone is built, beside its name."""
    return _build(sections_of(wildcards))


def static_builds_of(wildcards):
    """The same of the static networks beside a cell, by their architecture."""
    return {arch: _build(study.backbones[wildcards.dataset, arch]) for arch in STATICS}


def sets_of(names):
    """Some IC sets as they are in a cell. A function of the wildcards."""
    return lambda wildcards: {
        name: sections_of(wildcards).ics.sets[name].model_dump() for name in names
    }


# Cores of this machine, or, in the run of the one job that an executor has started, of that job. Without a number of
# cores a profile's executor runs the jobs, and a job gets four where the profile's set-threads says nothing else.
try:
    CORES, SHARED = workflow.cores, workflow.is_main_process
except WorkflowError:
    CORES, SHARED = 4, False


def share_of_cores(wildcards):
    """Threads of a job that computes: on one machine the cells that can run side by side share its cores."""
    return max(1, CORES // len(CELLS)) if SHARED else CORES


# GPUs of a job that computes with a network: where there is none to be had, nothing asks for them.
GPUS = 0 if study.device == "cpu" else 1


def doubling(first):
    """Memory in MB or time in minutes of a job: twice as much with every further try."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def log_of(rule):
    """Log of a rule that works on one cell."""
    return LAYOUT.log(rule, CELL.title)


def benchmark_of(rule):
    """Snakemake's own measurement of a rule that works on one cell."""
    return LAYOUT.benchmark(rule, CELL.title)


def weights_of(cell):
    """The weights of all networks of a cell and of the static networks beside it."""
    return [
        LAYOUT.backbone(cell),
        *(LAYOUT.ics(cell, ics) for ics in ICS),
        *(LAYOUT.ensemble(cell, *names) for names in ENSEMBLES),
        *(LAYOUT.backbone(cell.with_arch(arch)) for arch in STATICS),
    ]


def of_cells():
    """Every file that the jobs of all cells write and others read, and the store of their runs."""
    files = [
        LAYOUT.record(dataset, split)
        for dataset in study.datasets
        for split in ("train", "test")
    ]
    for cell in CELLS:
        files += weights_of(cell)
        files += [LAYOUT.predictions(cell, i, split) for i in ICS for split in SPLITS]
        for method in METHODS:
            files += [LAYOUT.curves(cell, method), LAYOUT.metrics(cell, method)]
            files += [LAYOUT.correct(cell, method), LAYOUT.network(cell, method)]
        files += [LAYOUT.runs(cell)] if TRACKED else []
        files += [
            LAYOUT.backbone_predictions(cell.with_arch(arch), split)
            for arch in STATICS
            for split in EVALUATED
        ]
    return files + ([LAYOUT.database] if study.tracking == "sqlite" else [])


def is_timed(wildcards):
    """Whether a cell is of the first seed: the one whose times are measured."""
    return TIMED and int(wildcards.seed) == study.seeds[0]


def logs_models(wildcards):
    """Whether MLflow gets the networks of a cell as models."""
    first = int(wildcards.seed) == study.seeds[0]
    return study.tracked_models == "all" or (
        study.tracked_models == "first_seed" and first
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
    splits = sections_of(wildcards).data.training_records
    return [LAYOUT.record(wildcards.dataset, split) for split in splits]


# Every record of a data set, the training images' first.
ALL_DATA = [LAYOUT.record("{dataset}", split) for split in ("train", "test")]
# What a training waits for, without depending on it: no image is unreadable.
CHECKED = ancient(LAYOUT.record("{dataset}", "test"))
