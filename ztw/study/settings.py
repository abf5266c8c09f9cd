"""Define every key of a study: type, default, unit, range and meaning. Imports no torch.

`ztw.study.manual` generates the manual's tables and the editors' schema from these definitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from ztw.errors import is_number
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC
from ztw.study.logits_settings import LogitsSet, LogitsSettings
from ztw.study.section import Listed, Name, Section, Unique, key, one_of, part
from ztw.study.training_settings import BackboneSettings, DistillationFrom, IcSet, IcsSettings, OwnRecipe

Budget = float | Literal["max"]
_BUDGET = one_of(
    "a number > 0 or max",
    lambda value: value == "max" or (is_number(value) and value > 0 and math.isfinite(value)),
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "max"}]},
)
_COMPILE = one_of(
    "auto, true or false",
    lambda value: value == "auto" or isinstance(value, bool),
    {"enum": ["auto", True, False]},
)
_THREADS = one_of(
    "all or a whole number >= 1",
    lambda value: value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
    {"anyOf": [{"const": "all"}, {"type": "integer", "minimum": 1}]},
)
Share = Annotated[float, Field(gt=0)]


class FolderSettings(Section):
    """A folder of the user's own images."""

    path: str = key("Folder with `train/` and `test/` (or `val/`), each with one folder per class.")
    size: int = key("Images are resized to `size` x `size` pixels.", ge=8, unit="pixels")
    stream: bool = key(
        "`true`: read images when they are needed, in one process per thread, with ImageNet's resizing"
        " and crops. For data sets that do not fit into memory.",
        False,
    )
    sha256: str | None = key(
        "SHA-256 of all images, paths and contents. The study stops if the images have another hash.",
        None,
        pattern="^[0-9a-f]{64}$",
    )


class DataSettings(Section):
    """Section `data`."""

    root: str | None = key(
        "Folder for data sets. `null`: `$ZTW_DATA` if it is set, else `~/.cache/ztw`.", None
    )
    training_images: int | None = key(
        "Number of training images to use, the validation split included: the same share of each class, drawn by"
        " the seed. `null`: all.",
        None,
        ge=2,
        unit="images",
    )
    validation_fraction: float = key(
        "Share of each class for the validation split: no network is trained on it, thresholds are"
        " chosen on it. `0`: train on all images, as the released code does.",
        0.1,
        ge=0,
        lt=1,
        unit="share",
    )
    validation_from: Literal["train", "test"] = key(
        "Source of the validation images, `train` or `test`. With `test`, the other test images are the"
        " test split.",
        "train",
    )
    flip: bool | None = key("Random horizontal flips in training. `null`: the data set's default.", None)
    crop_padding: int | None = key(
        "Padding of random crops in training; `0`: no crops. `null`: the data set's default.",
        None,
        ge=0,
        unit="pixels",
    )
    colour_jitter: float | None = key(
        "Random change of brightness, contrast and saturation in training, each by up to this share."
        " `null`: the data set's default (0.2 for `tiny_imagenet`, else 0).",
        None,
        ge=0,
        lt=1,
        unit="share",
    )
    jitter_order: Literal["fixed", "random"] = key(
        "Order of the colour changes. `fixed`: brightness, contrast, saturation. `random`: a random"
        " order for each image, as in the released code.",
        "fixed",
    )
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = key(
        "Mean per channel for normalisation, of pixels in [0, 1]. `null`: the data set's, or"
        " ImageNet's if images are streamed. Weights from elsewhere need the mean of their own"
        " training images.",
        None,
    )
    std: Annotated[tuple[Share, ...], Field(min_length=1)] | None = key(
        "Standard deviation per channel, as `mean`.", None
    )
    image_folders: dict[Name, FolderSettings] = key(
        "Your own images: name -> `path`, `size`, `stream` and `sha256`.", {}
    )

    @property
    def training_records(self) -> tuple[str, ...]:
        """Splits whose records training depends on; includes "test" if the validation split comes from it."""
        return ("train", "test") if self.validation_from == "test" else ("train",)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits that methods are evaluated on."""
        return ("validation", "test") if self.validation_fraction else ("test",)


class OverrideSettings(Section):
    """An item of `overrides`; its changes are checked after they are merged into the sections."""

    datasets: Listed[str] | None = key("Data sets that the item changes. `null`: all.", None)
    archs: Listed[str] | None = key("Architectures that the item changes. `null`: all.", None)
    data: dict[str, Any] = key("Keys of `data`: augmentation and normalisation.", {})
    backbone: dict[str, Any] = key("Keys of `backbone`.", {})
    ics: dict[str, Any] = key("Keys of `ics`.", {})

    def holds_for(self, dataset: str, arch: str) -> bool:
        """Return whether the override applies to a data set and an architecture."""
        return dataset in (self.datasets or (dataset,)) and arch in (self.archs or (arch,))


class EnsembleFit(Section):
    """How ensembles are fitted."""

    samples: int | None = key(
        "Number of training images (augmented) to fit on. `null`: all.", None, ge=1, unit="images"
    )
    include_final: bool = key(
        "`true`: the backbone's own exit is ensembled as well (ZTW's code of 2021). `false`: it"
        " predicts alone (ZTW's code of 2023).",
        True,
    )
    fit_on: Literal["train", "validation"] = key(
        "Images to fit on, `train` or `validation`. No network was trained on `validation`, but"
        " thresholds are chosen on it, too.",
        "train",
    )


class EnsembleSettings(EnsembleFit):
    """An ensemble with all keys filled in from the section."""

    kind: Annotated[str, part("ensemble")] = key(
        "`geometric`: weighted geometric mean. `arithmetic`: weighted arithmetic mean. `uniform`:"
        " plain mean, nothing to fit."
    )


class EnsemblesSettings(EnsembleFit):
    """Section `ensembles`."""

    sets: dict[Name, EnsembleSettings] = key(
        "Your own ensembles: name -> `kind` and any other key of this section.", {}
    )


class MethodKeys(Section):
    """The keys of a method without those of a static network's recipe."""

    ics: str = key(
        "A name of `ics.sets` or `logits.sets`. Required unless the row has `static` or `cascade_of`.", ""
    )
    ensemble: str | None = key(
        "`geometric`, `arithmetic`, `uniform`, or a name of `ensembles.sets`. `null`: each exit"
        " predicts alone.",
        None,
    )
    rule: Annotated[str, part("rule")] = key('When a sample leaves; see section "Rules".', "max_softmax")
    thresholds: Annotated[str, part("thresholds")] = key(
        'How thresholds are chosen; see section "Thresholds".', "shared"
    )
    static: str | None = key(
        "A network without early exits, by its name as in `archs`; in a study from logits a name of `logits.sets`."
        " The other keys of such a row are `int8`, `distillation` and a recipe of its own.",
        None,
    )
    cascade_of: Annotated[Unique[str], Field(min_length=2)] | None = key(
        "A cascade of networks: names of static rows, from the cheapest to the most expensive. A sample goes on to the"
        " next network while the rule does not let it leave.",
        None,
    )
    int8: bool = key('`true`: the same network in int8, in ONNX Runtime; see section "int8".', False)
    distillation: DistillationFrom | None = key(
        '`static` rows: learn from another static network; see section "Distillation".', None
    )


class MethodSettings(OwnRecipe, MethodKeys):
    """A method: a row of the tables."""

    @property
    def own_training(self) -> dict[str, Any]:
        """The keys of `backbone` that a static row sets for itself."""
        return {name: value for name in OwnRecipe.model_fields if (value := getattr(self, name)) is not None}


class EvaluationSettings(Section):
    """Section `evaluation`."""

    budgets: Listed[Annotated[Budget, *_BUDGET]] = key(
        "Columns of the main table: upper limits on the mean cost per sample, as a share of the"
        " backbone's MACs. `max`: the most accurate threshold at any cost.",
        (0.25, 0.5, 0.75, 1.0, "max"),
    )
    protocols: Listed[Literal["held-out", "paper", "published"]] = key(
        'Where thresholds are chosen and how cost is counted; see section "Protocols". Figures use'
        " the first.",
        ("held-out", "paper"),
    )
    points: int = key(
        "Number of thresholds to try at equal distances, and as many at quantiles of the confidences.",
        1000,
        ge=2,
    )
    allowed_losses: Listed[Annotated[float, Field(ge=0.001, lt=1)]] = key(
        "Rows of `tables/allowed_loss.csv`, for thresholds `allowed_loss` and `risk_controlled`.",
        (0.005, 0.01, 0.02, 0.05),
        unit="share",
    )


class LatencySettings(Section):
    """Section `latency`."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = key(
        "Batch sizes to time. An empty list switches timing off.", (1, 32, 256), unit="images"
    )
    images: int = key(
        "Number of images to time for each batch size; at least five batches are timed.",
        256,
        ge=1,
        unit="images",
    )
    threads: Listed[Annotated[Literal["all"] | int, *_THREADS]] = key(
        "Numbers of threads to time with. `all`: as many as the job has.", ("all",)
    )
    runtimes: Listed[Literal["pytorch", "onnxruntime"]] = key(
        "`pytorch` (required, for comparison) and `onnxruntime` (ONNX Runtime in float32; on a CPU only).",
        ("pytorch", "onnxruntime"),
    )


class HardwareSettings(Section):
    """The hardware that a study uses."""

    precision: Literal["auto", "bf16", "fp32"] = key(
        "`bf16`, `fp32`, or `auto` = bf16 if it is faster (AMX, AMD's AVX512-BF16, GPUs from Ampere on),"
        " else fp32.",
        "auto",
    )
    device: str = key("`cpu`, `cuda`, `cuda:1`, ..., or `auto` = a GPU if there is one.", "auto")
    compile: Annotated[Literal["auto"] | bool, *_COMPILE] = key(
        'Whether training steps are compiled; see section "Compilation".', "auto"
    )


@dataclass(frozen=True)
class CellSettings:
    """The sections of one data set and architecture, overrides applied; static networks ignore `ics`."""

    data: DataSettings
    backbone: BackboneSettings
    ics: IcsSettings


class CellNames(Section):
    """The data sets, architectures and seeds of a study; every combination is a cell."""

    datasets: Listed[str] = key(
        "`fashion_mnist`, `cifar10`, `cifar100`, `tiny_imagenet`, `svhn`, `imagenet`, `digits`, or"
        " names under `data.image_folders`. In a study from logits: any names."
    )
    archs: Listed[str] = key(
        'Names of networks (`resnet20`, `torchvision/resnet50`, `timm/resnet50`, ...); see section "Architectures".'
        " In a study from logits: any names."
    )
    seeds: Listed[Annotated[int, Field(ge=0)]] = key(
        "Random seeds for the validation split, initial weights, order of images and augmentation."
    )


def _kind(method: MethodSettings) -> str:
    if method.static:
        return STATIC
    if method.cascade_of:
        return CASCADE
    return FIXED_EXIT if method.rule == "fixed_exit" else EARLY_EXITS


# Of a study from logits
NO_ICS = IcsSettings.model_construct(sets={})


class Study(HardwareSettings, CellNames):
    """A complete study: trained cells with `ics`, or cells from files with `logits`."""

    plugins: Unique[str] = key('Files and packages with your own parts; see section "Plugins".', ())
    data: DataSettings = DataSettings()
    backbone: BackboneSettings = BackboneSettings()
    ics: IcsSettings = NO_ICS
    logits: LogitsSettings | None = None
    overrides: tuple[OverrideSettings, ...] = ()
    ensembles: EnsemblesSettings = EnsemblesSettings()
    methods: Annotated[dict[Name, MethodSettings], Field(min_length=1)]
    evaluation: EvaluationSettings = EvaluationSettings()
    latency: LatencySettings = LatencySettings()
    tracking: str = key(
        "Where MLflow keeps runs: `sqlite`, the URI of a tracking server, or `none`; see section"
        ' "Runs in MLflow".',
        "sqlite",
    )
    tracked_models: Literal["first_seed", "all", "none"] = key(
        "Cells whose networks are logged to MLflow as models: `first_seed`, `all` or `none`.", "first_seed"
    )
    _cells: dict[tuple[str, str], CellSettings] = PrivateAttr(default_factory=dict)

    @property
    def cells(self) -> dict[tuple[str, str], CellSettings]:
        """Settings by (data set, architecture), for the architectures in `archs`."""
        return {names: cell for names, cell in self._cells.items() if names[1] in self.archs}

    @property
    def backbones(self) -> dict[tuple[str, str], CellSettings]:
        """Settings by (data set, architecture), static networks included."""
        return self._cells

    @property
    def statics(self) -> dict[str, str]:
        """Static network -> its architecture, in the order of the methods; none in a study from logits.

        Rows without a training of their own share one network per architecture, named after it.
        """
        if self.logits:
            return {}
        networks = {self.network_of(name): method.static for name, method in self.methods.items()}
        return {network: arch for network, arch in networks.items() if network and arch}

    def source_of(self, row: str) -> str:
        """Return what a row's logits come from: an IC set, a static network, or networks joined by "+"."""
        method = self.methods[row]
        if method.cascade_of:
            return "+".join(map(self.source_of, method.cascade_of))
        return method.ics or str(self.network_of(row))

    @property
    def cascades(self) -> dict[str, list[str]]:
        """Source of each cascade -> its networks."""
        rows = {name: method.cascade_of for name, method in self.methods.items() if method.cascade_of}
        return {self.source_of(name): list(map(self.source_of, members)) for name, members in rows.items()}

    def network_of(self, row: str) -> str | None:
        """Return the name of a static row's network, also the name of its folder; None for other rows.

        An int8 row shares the network of the row that is equal apart from `int8`.
        """
        method = self.methods[row]
        if not (method.own_training or method.distillation):
            return method.static
        in_float = method.model_copy(update={"int8": False})
        return next((name for name, other in self.methods.items() if other == in_float), row)

    @property
    def int8_sets(self) -> list[str]:
        """The IC sets that methods use in int8."""
        return sorted({method.ics for method in self.methods.values() if method.int8 and method.ics})

    @property
    def int8_statics(self) -> list[str]:
        """The static networks that methods use in int8, alone or in a cascade."""
        rows = [name for name, method in self.methods.items() if method.int8 and not method.ics]
        return sorted({network for name in rows for network in self.source_of(name).split("+")})

    @property
    def int8_methods(self) -> tuple[str, ...]:
        """The methods in int8."""
        return tuple(name for name, method in self.methods.items() if method.int8)

    @property
    def exit_sets(self) -> Mapping[str, IcSet | LogitsSet]:
        """What methods name: IC sets before any override, or sets of logits."""
        return self.logits.sets if self.logits else self.ics.sets

    @property
    def families(self) -> dict[str, str]:
        """Family of each method, by how its exits are trained and connected. Static networks have none."""
        return {name: self._family(method) for name, method in self.methods.items() if not method.static}

    @property
    def headline(self) -> tuple[str, ...]:
        """Methods of the main figures: of each family the first with rule patience and the first with another rule.

        Of "recycled", the first with both a cascade and an ensemble, if there is one; of cascades of networks, the
        first of the longest. Methods in int8 are counted apart. Fixed exits are left out.
        """
        groups: dict[tuple[str, bool, bool], list[str]] = {}
        for name, family in self.families.items():
            method = self.methods[name]
            if _kind(method) != FIXED_EXIT:
                groups.setdefault((family, method.rule == "patience", method.int8), []).append(name)
        first = {max(names, key=self._size) for names in groups.values()}
        return tuple(name for name in self.methods if name in first)

    def _size(self, name: str) -> int:
        """Return the number of networks of a cascade, or of parts that recycle earlier exits."""
        method = self.methods[name]
        if method.cascade_of:
            return len(method.cascade_of)
        chained = bool(method.ics) and self.exit_sets[str(method.ics)].connection.startswith("cascade")
        return bool(method.ensemble) + chained if self._family(method) == "recycled" else 0

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each method, see `ztw.study.kinds`."""
        return {name: _kind(method) for name, method in self.methods.items()}

    def _family(self, method: MethodSettings) -> str:
        if method.cascade_of:
            return "networks"
        ics = self.exit_sets[method.ics]
        if ics.trains_backbone:
            return "together"
        return "recycled" if method.ensemble or ics.connection.startswith("cascade") else "frozen"

    def with_cells(self, cells: dict[tuple[str, str], CellSettings]) -> Study:
        """Return the same study with its resolved cells."""
        study = self.model_copy()
        study._cells = cells
        return study
