"""A study, typed: the type, default, unit, range and meaning of every key. Imports no torch.

`ztw.study.manual` generates the manual's tables and the editors' schema from these definitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from ztw.study.section import Listed, Name, Section, Unique, is_number, key, one_of, part
from ztw.study.training_settings import BackboneSettings, IcSet, IcsSettings

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
Share = Annotated[float, Field(gt=0)]


class FolderSettings(Section):
    """A folder of the user's own images."""

    path: str = key("the folder that holds train/ and test/ (or val/), each with one folder per class")
    size: int = key("images are resized to `size` x `size`", ge=8, unit="pixels")
    stream: bool = key("read as they are needed, never held in memory", False)
    sha256: str | None = key(
        "one hash of all images, their paths and contents (below): the study stops where it has others. The record"
        " `results/<study>/data/<name>/test.json` says what it is; of a streamed folder, which takes long to read,"
        " only where the key is given",
        None,
        pattern="^[0-9a-f]{64}$",
    )


class DataSettings(Section):
    """Section `data`."""

    root: str | None = key("where data sets are kept; `null` is `$ZTW_DATA`, or else `~/.cache/ztw`", None)
    validation_fraction: float = key(
        "share of the images, per class, that become the validation split: nothing here is trained on it,"
        " thresholds are chosen there. A class of two images or more has at least one in it where the share allows"
        " one of each class; a note names classes that have none."
        " 0 = all images are trained on, as in the released code: possible with"
        " protocols `paper` and `published` alone, without latency and whatever else needs held-out images",
        0.1,
        ge=0,
        lt=1,
        unit="share",
    )
    validation_from: Literal["train", "test"] = key(
        "which images it is taken from. Weights that were not trained here (`backbone.source`) have usually seen"
        " all training images, and are too sure of them: take `test`, the rest of which is then the test split",
        "train",
    )
    flip: bool | None = key("random horizontal flips while training; `null` is what suits the data set", None)
    crop_padding: int | None = key(
        "random crops after padding this much; 0 for none, `null` is what suits the data set",
        None,
        ge=0,
        unit="pixels",
    )
    colour_jitter: float | None = key(
        "random brightness, contrast and saturation, each changed by up to this share; `null` is what suits the"
        " data set (0.2 for `tiny_imagenet`, else 0)",
        None,
        ge=0,
        lt=1,
        unit="share",
    )
    jitter_order: Literal["fixed", "random"] = key(
        "of `colour_jitter`: `fixed` = brightness, contrast, saturation; `random` = in another order for every"
        " image (released)",
        "fixed",
    )
    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = key(
        "normalisation per channel, of pixels in [0, 1]; `null` is the data set's own. Somebody else's weights"
        " need the one they were trained with",
        None,
    )
    std: Annotated[tuple[Share, ...], Field(min_length=1)] | None = key("as `mean`", None)
    image_folders: dict[Name, FolderSettings] = key(
        "your own images, name -> `path`, `size`, `stream`, `sha256`. `path` holds `train/` and `test/` (or `val/`),"
        " each with one folder per class; images are resized to `size` x `size` pixels. With `stream: true` they are"
        " read as they are needed by one process a thread and never held in memory (ImageNet's resizing and crops;"
        " `mean` and `std` are ImageNet's unless given)",
        {},
    )

    @property
    def training_records(self) -> tuple[str, ...]:
        """The data set's splits that training depends on; "test" if the validation split is taken from it."""
        return ("train", "test") if self.validation_from == "test" else ("train",)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits that methods are evaluated on."""
        return ("validation", "test") if self.validation_fraction else ("test",)


class OverrideSettings(Section):
    """An item of `overrides`; its changes are checked after they are merged into the sections."""

    datasets: Listed[str] | None = key("the data sets it holds for; left out = all", None)
    archs: Listed[str] | None = key("the architectures it holds for; left out = all", None)
    data: dict[str, Any] = key("keys of `data` (augmentation and normalisation)", {})
    backbone: dict[str, Any] = key("keys of `backbone`", {})
    ics: dict[str, Any] = key("keys of `ics`", {})

    def holds_for(self, dataset: str, arch: str) -> bool:
        """Return whether the override applies to a data set and an architecture."""
        return dataset in (self.datasets or (dataset,)) and arch in (self.archs or (arch,))


class EnsembleFit(Section):
    """How ensembles are fitted."""

    samples: int | None = key(
        "how many training images (augmented) the ensembles are fitted on; `null` is all",
        None,
        ge=1,
        unit="images",
    )
    include_final: bool = key(
        "whether the backbone's own exit is ensembled too (ZTW's 2021 code) or answers for itself (2023)",
        True,
    )
    fit_on: Literal["train", "validation"] = key(
        "or `validation`: images no training saw, but the ones thresholds are chosen on as well", "train"
    )


class EnsembleSettings(EnsembleFit):
    """An ensemble with all keys filled in from the section."""

    kind: Annotated[str, part("ensemble")] = key("what is averaged, and with which weights")


class EnsemblesSettings(EnsembleFit):
    """Section `ensembles`."""

    sets: dict[Name, EnsembleSettings] = key(
        "ensembles of your own: name -> `kind` (`geometric`, `arithmetic`, `uniform`) and any other key of this"
        " section",
        {},
    )


class MethodSettings(Section):
    """A method: a row of the tables."""

    ics: str = key("a name of `ics.sets`; must be there unless the row is `static`", "")
    ensemble: str | None = key(
        "`geometric`, `arithmetic`, `uniform`, or a name of `ensembles.sets`; `null` answers with single exits",
        None,
    )
    rule: Annotated[str, part("rule")] = key(
        "leave when ... `max_softmax`: the largest probability exceeds the threshold; `max_softmax_or_best`: the"
        " same, and where no exit passes the most confident of all answers (SDN); `entropy`: the entropy is below"
        " it; `patience`: t consecutive exits have agreed with the one before them, t from 0 (everything leaves at exit"
        " 1) to K-1; the released comparison's p is t + 1, PABEE's own patience is t, but its 0 means the whole"
        " network",
        "max_softmax",
    )
    thresholds: Annotated[str, part("thresholds")] = key(
        "how they are chosen on the split of the protocol. `shared`: one for all exits. `per_exit`: one each, by"
        " coordinate ascent on accuracy against cost. `allowed_loss`: one each, from an allowed loss of accuracy"
        " (cascaded inference). `risk_controlled`: one, such that with 90 % confidence the loss of accuracy against"
        " running to the end stays below the allowed one; that holds for data drawn like the held-out images, which"
        " must have one of every class, and for an allowed loss fixed beforehand"
        " (`tables/allowed_loss.csv`), not for one picked by its cost (the columns of the main table)",
        "shared",
    )
    static: str | None = key(
        "instead of every other key: a network without early exits, by its name as in `archs`. It is trained as the"
        " cell's backbone is, by the section `backbone` (`overrides` can name it), and stands in the tables at every"
        " budget that it fits: would a smaller network have done?",
        None,
    )


class EvaluationSettings(Section):
    """Section `evaluation`."""

    budgets: Listed[Annotated[Budget, *_BUDGET]] = key(
        "columns of the table: the largest mean cost of a sample, as a share of the backbone's MACs; `max` is the"
        " most accurate threshold at any cost",
        (0.25, 0.5, 0.75, 1.0, "max"),
    )
    protocols: Listed[Literal["held-out", "paper", "published"]] = key(
        "`held-out` chooses thresholds on the validation split, `paper` on the test split, as the released code"
        " does; `published` is `paper` with costs by the published operation counter, to compare with published"
        " figures; accuracy and cost are always the test split's. The first is the one figures use",
        ("held-out", "paper"),
    )
    points: int = key(
        "thresholds to try: this many even steps, and as many quantiles of the confidences", 1000, ge=2
    )
    allowed_losses: Listed[Annotated[float, Field(ge=0.001, lt=1)]] = key(
        "rows of `tables/allowed_loss.csv`, for methods whose thresholds follow an allowed loss",
        (0.005, 0.01, 0.02, 0.05),
        unit="share",
    )


class LatencySettings(Section):
    """Section `latency`."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = key(
        "an empty list switches the timing off", (1, 32, 256), unit="images"
    )
    images: int = key("how many images each is timed on (at least five batches)", 256, ge=1, unit="images")
    runtimes: Listed[Literal["pytorch", "onnxruntime"]] = key(
        "`pytorch`, with which the others are compared, and `onnxruntime`: every network exported once (3 to 10 s each"
        " for a ResNet-20) and run in ONNX Runtime in float32, on the CPU only: on a GPU it is left out",
        ("pytorch", "onnxruntime"),
    )


class HardwareSettings(Section):
    """The hardware that a study uses."""

    precision: Literal["auto", "bf16", "fp32"] = key(
        "`bf16` or `fp32`; `auto` is bf16 where the CPU or GPU computes faster in it (AMX, AVX512-BF16 of AMD,"
        " GPUs from Ampere on)",
        "auto",
    )
    device: str = key(
        "`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU when there is one. On a CPU the same threads give the"
        " same tables to the byte; on a GPU atomic sums can change the last digits",
        "auto",
    )
    compile: Annotated[Literal["auto"] | bool, *_COMPILE] = key(
        "`true` builds all trainings with torch.compile first, `auto` backbones that train 4000 steps or more,"
        " where there is a C++ compiler. It takes about a minute; on two CPU cores without AMX it gained 5 to 11 %"
        " of a ResNet-56's epoch and made IC training slower (`make bench` measures it on yours). On a GPU `auto`"
        " compiles nothing and captures every training's step as a CUDA graph: on an H100 a step of a ResNet-56 then"
        " took 6.7 ms instead of 29.8, a step of three sets of 27 ICs on it 20 instead of 129. Not where a plugin"
        " brings a backbone or a head: it may draw or decide in Python, which would be captured once for all batches",
        "auto",
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
        "`fashion_mnist`, `cifar10`, `cifar100`, `tiny_imagenet`, `svhn`, `imagenet`, `digits`, or names under"
        " `data.image_folders`"
    )
    archs: Listed[str] = key(
        "`resnet8`, `resnet14`, `resnet20`, ... `resnet110`: the CIFAR ResNets of 6n+2 layers; `vgg16_bn` (images"
        " of 32 pixels or more), `wide_resnet_32_4`, `mobilenet` (V1); `torchvision/<name>`: its classification"
        " models, cut into their own blocks (`torchvision/resnet50`, `torchvision/vit_b_16`, ...; colour images)"
    )
    seeds: Listed[Annotated[int, Field(ge=0)]] = key(
        "each seeds the validation split, the initial weights, the order and the augmentation"
    )


class Study(HardwareSettings, CellNames):
    """A complete study."""

    plugins: Unique[str] = key(
        "parts of your own (`ztw.register`), then named like the built-in ones: Python files, their paths relative to"
        " the folder the study is run in, or entry points of installed packages (group `ztw.plugins`). They may import"
        " files beside them, and an edit of such a file is an edit of the plugin. Their code runs with your rights:"
        " read what others wrote first",
        (),
    )
    data: DataSettings = DataSettings()
    backbone: BackboneSettings = BackboneSettings()
    ics: IcsSettings
    overrides: tuple[OverrideSettings, ...] = ()
    ensembles: EnsemblesSettings = EnsemblesSettings()
    methods: Annotated[dict[Name, MethodSettings], Field(min_length=1)]
    evaluation: EvaluationSettings = EvaluationSettings()
    latency: LatencySettings = LatencySettings()
    tracking: str = key(
        "MLflow: `sqlite` writes `results/<study>/mlflow.db`, for jobs that run on one machine; a URI (`http://...`)"
        " uses a tracking server (`make mlflow-server` starts one): while it is away the study ends all the same, and"
        " the next call delivers its runs; its name and password in MLFLOW_TRACKING_USERNAME and _PASSWORD, or in the"
        " URI, from where they get into no other file; `none` switches it off",
        "sqlite",
    )
    tracked_models: Literal["first_seed", "all", "none"] = key(
        "of which cells MLflow gets every method's network as a model, `runs:/<run of the method>/model`: it loads"
        " with mlflow.pyfunc wherever ztw can be imported. A model holds its backbone, so that a cell takes as many"
        " backbones as it has methods",
        "first_seed",
    )
    _cells: dict[tuple[str, str], CellSettings] = PrivateAttr(default_factory=dict)

    @property
    def cells(self) -> dict[tuple[str, str], CellSettings]:
        """(data set, architecture) -> settings."""
        return {names: cell for names, cell in self._cells.items() if names[1] in self.archs}

    @property
    def backbones(self) -> dict[tuple[str, str], CellSettings]:
        """(data set, architecture) -> settings, static networks included."""
        return self._cells

    @property
    def statics(self) -> tuple[str, ...]:
        """The architectures of the static networks, in the order of the methods."""
        return tuple(dict.fromkeys(method.static for method in self.methods.values() if method.static))

    @property
    def families(self) -> dict[str, str]:
        """Method -> family: how its exits are trained and connected. Static networks have none."""
        return {name: self._family(method) for name, method in self.methods.items() if not method.static}

    def _family(self, method: MethodSettings) -> str:
        ics = self.ics.sets[method.ics]
        if ics.trains_backbone:
            return "together"
        return "recycled" if method.ensemble or ics.connection.startswith("cascade") else "frozen"

    def sets(self, names: Iterable[str] | None = None) -> dict[str, IcSet]:
        """Return IC sets by name, before any override; without names, all of them."""
        return {name: self.ics.sets[name] for name in names or self.ics.sets}

    def with_cells(self, cells: dict[tuple[str, str], CellSettings]) -> Study:
        """Return the same study with its resolved cells."""
        study = self.model_copy()
        study._cells = cells
        return study
