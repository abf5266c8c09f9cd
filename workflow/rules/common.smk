# Names that all stages use: the checked study, its folder, its cells.
import os
import re
from pathlib import Path
from snakemake.exceptions import WorkflowError
from ztw.errors import ZtwError, without_password
from ztw.progress import describe
from ztw.study.config import check_study, heading, read_config, study_name
from ztw.study.environment import search_path, settings_of_others
from ztw.study import job_settings
from ztw.study.plugins import plugins_with
from ztw.study.layout import ALONE, Cell, Layout, figure_title, metadata, PUBLISHED
from ztw.study.published_values import has_published
from ztw.study.kinds import EARLY_EXITS
from ztw.study.provenance import code_digest, file_stamp

# With `--sdm conda`, every rule gets this environment. ztw itself is imported from the same folder.
ENVIRONMENT = Path(workflow.basedir).parent / "environment.yml"
# `reproduce` does this, too, but a node of a cluster may set variables of its own.
for name in settings_of_others(os.environ):
    del os.environ[name]

try:
    for file in workflow.overwrite_configfiles:
        read_config(file)  # refuses a key that appears twice; Snakemake does not
    study = check_study(config)
    # The config file gives the study and its folder their name.
    CONFIG_FILE = (workflow.overwrite_configfiles or ["config/quick.yaml"])[-1]
    STUDY_NAME = study_name(CONFIG_FILE)
except ZtwError as error:
    raise WorkflowError(describe(error))

# Plugins may import from the user's PYTHONPATH, also in jobs on a cluster.
os.environ.update(
    PYTHONPATH=search_path(
        str(ENVIRONMENT.parent), os.environ, others=bool(study.plugins)
    )
)

# A password in `tracking` reaches the jobs by the environment only, because Snakemake writes params and the config to
# files, and config files into the report.
os.environ.update(ZTW_TRACKING=study.tracking)
if (shown := without_password(study.tracking)) != study.tracking:
    config["tracking"] = shown
    workflow.configfiles.clear()

# For the study's report.
GIVEN = dict(config)
# For the captions of Snakemake's report, with defaults filled in.
config["evaluation"] = study.evaluation.model_dump()
config["counted"] = (
    "given with the logits" if study.logits else "counted by ptflops, backend aten"
)
# Scripts find the study's files by its name.
config["study"] = STUDY_NAME

LAYOUT = Layout(Path("results") / STUDY_NAME)
# The cell of a rule, as wildcards.
CELL = Cell("{dataset}", "{arch}", "{seed}")
CELLS = [Cell(*names, seed) for names in study.cells for seed in study.seeds]
CELL_NAMES = [(cell.dataset, cell.arch, cell.seed) for cell in CELLS]
METHODS = list(study.methods)
# Sets of logits from files, instead of trained ones. They include networks without early exits.
LOGITS = (
    {name: s.model_dump() for name, s in study.logits.sets.items()}
    if study.logits
    else {}
)
STATIC_SETS = sorted({m.static for m in study.methods.values() if LOGITS and m.static})
ICS = list(study.exit_sets)
# Sets of internal classifiers (ICs) that train the backbone as well are one job each. All others are one job.
JOINT, FROZEN = job_settings.joint_sets(study), job_settings.frozen_sets(study)
# (IC set or cascade, ensemble) of the methods, and how each ensemble is fitted.
ENSEMBLES, FITTED = job_settings.ensembles(study), job_settings.fits(study)
EVALUATED = list(study.data.evaluated)
SPLITS, STATIC_SPLITS = job_settings.splits(study), job_settings.static_splits(study)
# IC set -> its splits. A file of logits may have no training samples.
FIT_ON_TRAIN = job_settings.fitted_on_train(study)
SPLITS_OF = {
    ics: SPLITS if not LOGITS or ics in FIT_ON_TRAIN else EVALUATED for ics in ICS
}
# Static networks: networks without early exits. Each has a cell of its own, with a backbone alone.
STATICS = study.statics
STATIC_CELLS = [CELL.with_arch(network) for network in STATICS]
# Networks that methods use in int8
INT8_SETS, INT8_STATICS = study.int8_sets, study.int8_statics
TRACKED = study.tracking != "none"
# Only the first seed of every data set and architecture is timed.
TIMED = study.logits.times if study.logits else bool(study.latency.batch_sizes)
TIMED_CELLS = [cell for cell in CELLS if TIMED and cell.seed == study.seeds[0]]
FIGURES = ["accuracy_cost", "exit_accuracy", "hindsight_improvability", "exit_shares"]
FIGURES += ["accuracy_cost_all"] if set(study.families) - set(study.headline) else []
FIGURES += ["accuracy_time", "accuracy_time_all"] if TIMED else []
# Early exits against what one would use instead. Every method is chosen on held-out samples.
FRONTIER = "held-out" in study.evaluation.protocols
FIGURES += ["frontier"] if FRONTIER else []
# Title in file names -> (data set, architecture).
TITLES = {figure_title(*names): names for names in study.cells}
# Methods that may give the example images of the report; files of logits have no images.
GALLERY = {
    name: method.model_dump()
    for name, method in study.methods.items()
    if study.kinds[name] == EARLY_EXITS and not method.int8 and not LOGITS
}
PAGE = sorted((ENVIRONMENT.parent / "ztw/reporting/page").iterdir())


# The tables and figures.
RESULTS = [LAYOUT.table("accuracy_at_budget", kind) for kind in ("csv", "md", "tex")]
RESULTS += [LAYOUT.table(name) for name in ("per_exit", "allowed_loss", "training")]
# Only if config/published.csv has a value for a method of the study.
COMPARISON = [LAYOUT.table("comparison")] if has_published(PUBLISHED, study) else []
RESULTS += COMPARISON
RESULTS += [LAYOUT.table("latency", kind) for kind in ("csv", "md") if TIMED]
RESULTS += [LAYOUT.table("frontier", kind) for kind in ("csv", "md") if FRONTIER]
RESULTS += [LAYOUT.figure(title, figure) for title in TITLES for figure in FIGURES]
RESULTS += [LAYOUT.figure(title, "gallery") for title in TITLES if GALLERY]

# Rules get settings as plain values in `params`. A changed value runs the job again.
EVALUATION = study.evaluation.model_dump()
METHOD_SETTINGS = {name: method.model_dump() for name, method in study.methods.items()}


wildcard_constraints:
    dataset="|".join(map(re.escape, study.datasets)),
    arch="|".join(map(re.escape, dict.fromkeys([*study.archs, *STATICS]))),
    seed="|".join(map(str, study.seeds)),
    ics="|".join(map(re.escape, ICS)),
    title="|".join(map(re.escape, TITLES)),


def plugins_of(*kinds):
    """Return the plugins with parts of these kinds, and their SHA-256, so that an edit of a plugin runs its jobs again."""
    return plugins_with(study.plugins, kinds)


# Plugins of jobs that build networks, and of jobs that evaluate methods.
NETWORK = plugins_of("backbone", "head")
METHOD = plugins_of("backbone", "head", "ensemble", "rule", "thresholds")


def cell_of(wildcards):
    """Return the cell of a job, which may be that of a static network."""
    return Cell(wildcards.dataset, wildcards.arch, int(wildcards.seed))


def sections_of(wildcards):
    """Return the sections of the study for a cell, also of a static network, with overrides applied."""
    return job_settings.sections(study, cell_of(wildcards))


def settings_of(job):
    """Return the settings of a job of a cell, as functions of the wildcards. A changed value runs the job again."""

    def of_cell(setting):
        return lambda wildcards: setting(study, cell_of(wildcards))

    return {name: of_cell(value) for name, value in job_settings.OF_CELL[job].items()}


def set_of(wildcards):
    """Return the settings of the IC set of a job that trains one."""
    return job_settings.ic_sets(study, cell_of(wildcards), [wildcards.ics])[
        wildcards.ics
    ]


def first_cell(wildcards):
    """Return the cell of a title with the first seed."""
    return Cell(*TITLES[wildcards.title], study.seeds[0])


def teacher_of(wildcards):
    """Return the weights of a static network's teacher; none if it has no teacher."""
    cell = cell_of(wildcards)
    if (distillation := job_settings.distillation(study, cell)) is None:
        return []
    return LAYOUT.backbone(cell.with_arch(distillation["teacher"]["network"]))


def stamps_of(wildcards):
    """Return a stamp of each file of logits of a cell. A changed file is imported again."""
    cell = cell_of(wildcards)
    return {name: file_stamp(s.file(cell)) for name, s in study.exit_sets.items()}


# Cores of this machine; in a job that an executor has started, cores of the job. Without a number of cores an executor runs
# the jobs. A job then gets four cores, unless the profile has set-threads for it.
try:
    CORES, SHARED = workflow.cores, workflow.is_main_process
except WorkflowError:
    CORES, SHARED = 4, False


def share_of_cores(wildcards):
    """Return the threads of a job that computes. On one machine, parallel cells share the cores."""
    return max(1, CORES // len(CELLS)) if SHARED else CORES


# GPUs of a job that computes with a network.
GPUS = 0 if study.device == "cpu" else 1


def doubling(first):
    """Return a resource (MB or minutes): `first`, doubled at every further try."""
    return lambda wildcards, attempt: first * 2 ** (attempt - 1)


def log_of(rule):
    """Return the log of a rule that works on one cell."""
    return LAYOUT.log(rule, CELL.title)


def benchmark_of(rule):
    """Return the benchmark file of a rule that works on one cell."""
    return LAYOUT.benchmark(rule, CELL.title)


def sources_of(source, split):
    """Return the logits that an ensemble of an IC set or a cascade is fitted on."""
    if LOGITS or source not in study.cascades:
        names = study.cascades.get(source, [source])
        return [LAYOUT.predictions(CELL, name, split) for name in names]
    homes = [CELL.with_arch(network) for network in study.cascades[source]]
    return [LAYOUT.backbone_predictions(home, split) for home in homes]


def weights_of(cell):
    """Return the weights of all networks of a cell and of the static networks beside it."""
    ensembles = [LAYOUT.ensemble(cell, *names) for names in ENSEMBLES]
    if LOGITS:
        return ensembles
    return [
        LAYOUT.backbone(cell),
        *(LAYOUT.ics(cell, ics) for ics in ICS),
        *ensembles,
        *(LAYOUT.backbone(cell.with_arch(arch)) for arch in STATICS),
    ]


def predictions_of(cell):
    """Return the logits of all IC sets of a cell, or of all sets from files."""
    return [
        LAYOUT.predictions(cell, ics, split)
        for ics, splits in SPLITS_OF.items()
        for split in splits
    ]


def int8_predictions_of(cell, splits):
    """Return the logits of all networks of a cell, and of the static networks beside it, that methods use in int8."""
    networks = [(cell, ics) for ics in INT8_SETS]
    networks += [(cell.with_arch(network), ALONE) for network in INT8_STATICS]
    return [
        LAYOUT.int8_predictions(*network, split)
        for network in networks
        for split in splits
    ]


def parts_of(cell):
    """Return the metadata of the parts of a cell: sets, ensembles, backbone."""
    if LOGITS:
        parts = [LAYOUT.predictions(cell, ics, "test") for ics in ICS]
    else:
        parts = [LAYOUT.backbone(cell), *(LAYOUT.ics(cell, ics) for ics in ICS)]
    parts += [LAYOUT.ensemble(cell, *names) for names in ENSEMBLES]
    return [metadata(part) for part in parts]


def of_cells():
    """Return all files of cells that jobs read, and the MLflow database."""
    files = [
        LAYOUT.record(dataset, split)
        for dataset in study.datasets
        for split in ("train", "test")
        if not LOGITS
    ]
    for cell in CELLS:
        files += weights_of(cell)
        files += predictions_of(cell)
        files += int8_predictions_of(cell, EVALUATED)
        for method in METHODS:
            files += [LAYOUT.curves(cell, method), LAYOUT.metrics(cell, method)]
            files += [LAYOUT.correct(cell, method)]
            files += [] if LOGITS else [LAYOUT.network(cell, method)]
        files += [LAYOUT.runs(cell)] if TRACKED else []
        files += [
            LAYOUT.backbone_predictions(cell.with_arch(arch), split)
            for arch in STATICS
            for split in STATIC_SPLITS
        ]
    return files + ([LAYOUT.database] if study.tracking == "sqlite" else [])


def is_timed(wildcards):
    """Return whether a cell is timed: only the first seed is."""
    return TIMED and int(wildcards.seed) == study.seeds[0]


def logs_models(wildcards):
    """Return whether MLflow gets the networks of a cell as models."""
    if LOGITS:
        return False
    first = int(wildcards.seed) == study.seeds[0]
    return study.tracked_models == "all" or (
        study.tracked_models == "first_seed" and first
    )


def training_data(wildcards):
    """Return the records that a training reads; with `validation_from: test` also the record of the test images."""
    splits = sections_of(wildcards).data.training_records
    return [LAYOUT.record(wildcards.dataset, split) for split in splits]


def backbone_data(wildcards):
    """Return the records that a backbone depends on; with `expected_accuracy` also the record of the test images."""
    if sections_of(wildcards).backbone.expected_accuracy is None:
        return training_data(wildcards)
    return [LAYOUT.record(wildcards.dataset, split) for split in ("train", "test")]


# All records of a data set, the record of the training images first.
ALL_DATA = [LAYOUT.record("{dataset}", split) for split in ("train", "test")]
# Training starts after all test images were checked, but does not depend on them (`ancient`).
CHECKED = ancient(LAYOUT.record("{dataset}", "test"))
