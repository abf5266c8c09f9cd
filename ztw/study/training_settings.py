"""The keys of `backbone` and `ics`: how networks are built and trained."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from ztw.catalogue.architectures import SDN_SHARES, Placement
from ztw.errors import is_number
from ztw.study.section import Name, Section, Unique, key, one_of, part

ExitWeights = str | tuple[int | float, ...]


def _numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_number(item) and math.isfinite(item) for item in value)


_NUMBERS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_PLACEMENT = one_of(
    "all, every <n>, sdn, a list of block indices or a list of fractions",
    lambda value: isinstance(value, str) or (_numbers(value) and len(value) > 0),
    {"anyOf": [{"type": "string"}, _NUMBERS]},
)
_EXIT_WEIGHTS = one_of(
    "uniform, depth, growing, or a list of numbers >= 0",
    lambda value: isinstance(value, str) or (_numbers(value) and all(item >= 0 for item in value)),
    {"anyOf": [{"enum": ["uniform", "depth", "growing"]}, {**_NUMBERS, "items": {"minimum": 0}}]},
)


class Recipe(Section):
    """How a network is trained."""

    epochs: float = key("Passes over the training images; 0.5 is half a pass.", ge=0, unit="epochs")
    batch_size: int = key("Images per training step.", 128, ge=2, unit="images")
    optimizer: Literal["sgd", "adam"] = key("`sgd` (with momentum) or `adam`.", "sgd")
    lr: float = key("Highest learning rate.", 0.1, gt=0)
    weight_decay: float = key("L2 penalty, as the optimizer applies it.", 5e-4, ge=0)
    momentum: float = key("Momentum of `sgd`.", 0.9, ge=0, lt=1)
    schedule: Literal["milestones", "one_cycle"] = key(
        "`milestones`: `lr` falls at the milestones. `one_cycle`: it rises, then falls (PyTorch's"
        " `OneCycleLR`).",
        "milestones",
    )
    milestones: Unique[Annotated[int, key("", ge=1)]] = key(
        "Epochs after which `lr` is multiplied by `gamma`.", (), unit="epochs"
    )
    gamma: float = key("Factor of `lr` at a milestone.", 0.1, gt=0, le=1)


class OwnRecipe(Section):
    """What a static network may have of its own; keys that are None are taken from `backbone`."""

    epochs: float | None = key("As in `backbone`, for this network only.", None, ge=0, unit="epochs")
    batch_size: int | None = key("As in `backbone`.", None, ge=2, unit="images")
    optimizer: Literal["sgd", "adam"] | None = key("As in `backbone`.", None)
    lr: float | None = key("As in `backbone`.", None, gt=0)
    weight_decay: float | None = key("As in `backbone`.", None, ge=0)
    momentum: float | None = key("As in `backbone`.", None, ge=0, lt=1)
    schedule: Literal["milestones", "one_cycle"] | None = key("As in `backbone`.", None)
    milestones: Unique[Annotated[int, key("", ge=1)]] | None = key("As in `backbone`.", None, unit="epochs")
    gamma: float | None = key("As in `backbone`.", None, gt=0, le=1)
    input_size: int | None = key("As in `backbone`.", None, ge=1, unit="pixels")


class Distillation(Section):
    """How a network learns from the predictions of a teacher (Hinton et al. 2015)."""

    weight: float = key(
        "Share of the loss that compares with the teacher; the rest is the cross-entropy with the labels.",
        0.5,
        gt=0,
        le=1,
        unit="share",
    )
    temperature: float = key("Both networks' logits are divided by it.", 3.0, gt=0)


class DistillationFrom(Distillation):
    """Distillation of a static network from another one."""

    teacher: str = key("Name of a method, a static network.")


class BackboneSource(Section):
    """Where a backbone comes from."""

    source: Literal["train", "torchvision", "file", "url"] = key(
        "Initial weights: `train` (random), `torchvision` (pretrained), `url` or `file`. They are"
        " trained for `epochs` epochs.",
        "train",
    )
    path: str | None = key("Source `file`: safetensors, or a torch file without pickled code.", None)
    url: str | None = key("Source `url`: the address of the file.", None, pattern="^(https?|file)://")
    sha256: str | None = key(
        "SHA-256 of the file. Required with source `url`, optional with `file`.",
        None,
        pattern="^[0-9a-f]{64}$",
    )
    pretrained: Literal["default", "v1"] = key(
        "Weights of source `torchvision`: `default` (DEFAULT), or `v1` (IMAGENET1K_V1, as in the"
        " released code).",
        "default",
    )
    expected_accuracy: float | None = key(
        "Known test accuracy of weights from elsewhere. The study stops before training if the"
        " measured accuracy differs by more than 0.01.",
        None,
        ge=0,
        le=1,
        unit="share",
    )


class BackboneBuild(Section):
    """How a backbone is built."""

    shortcut: Literal["conv", "pad"] = key(
        "CIFAR ResNets, where the shape changes: `conv` = 1x1 convolution, `pad` = zero padding (option A).",
        "conv",
    )
    ic_features: Literal["before_relu", "after_relu"] = key(
        "CIFAR ResNets: ICs see a block's sum before its last ReLU (`before_relu`, as in the released"
        " code) or after it (`after_relu`).",
        "before_relu",
    )
    last_norm_momentum: float = key(
        "`wide_resnet_32_4`: momentum of the last BatchNorm. The released code uses 0.9.", 0.1, gt=0, le=1
    )
    init: Literal["torch", "released"] = key(
        "Random initial weights: PyTorch's (`torch`), or the released code's (`released`, for the"
        " paper's architectures only; on MobileNet equal to `torch`). See section"
        ' "Initial weights".',
        "torch",
    )
    input_size: int | None = key(
        "The network itself first resizes its images to this side (bilinear). `null`: it takes them as they are.",
        None,
        ge=1,
        unit="pixels",
    )


class BackboneSettings(Recipe, BackboneBuild, BackboneSource):
    """Section `backbone`."""

    epochs: float = key("Passes over the training images; 0.5 is half a pass.", 0.0, ge=0, unit="epochs")


class Anatomy(Section):
    """How the ICs of a set are built."""

    head: Annotated[str, part("head")] = key(
        "`conv`: 3x3 convolution, ReLU, pool to 4x4, Linear. `pool`: pool to 4x4, Linear (SDN's head).",
        "conv",
    )
    pooling: Literal["mixed", "avg", "max"] = key(
        "`mixed` (learned mix of maximum and average, as in SDN), `avg` or `max`.", "mixed"
    )
    width: float = key(
        "Channels of the head's convolution, as a share of the block's channels.", 1.0, gt=0, unit="share"
    )
    layer_norm: bool = key(
        "In a cascade: LayerNorm on the previous exit's logits, as in the released recipe for ImageNet.",
        False,
    )
    init: Literal["torch", "released"] = key(
        "As `backbone.init`, for the ICs. On MobileNet and torchvision's models, `released` changes the"
        " mixed pool only.",
        "torch",
    )
    placement: Annotated[Placement, *_PLACEMENT] = key(
        'Blocks that get an IC; see section "Placement".', "all"
    )


class Regime(Section):
    """The keys that an IC set cannot take from the section."""

    connection: Literal["independent", "cascade", "cascade_detached", "boosted"] = key(
        'What an IC gets from the previous exit; see section "Connections".'
    )
    training: Literal["separate", "layer_wise", "joint"] = key(
        'What is trained, and in which order; see section "Training".', "separate"
    )
    start: Literal["backbone", "scratch"] = key(
        "Initial weights of the backbone: the cell's trained `backbone`, or random (`scratch`).", "backbone"
    )
    exit_weights: Annotated[ExitWeights, *_EXIT_WEIGHTS] = key(
        '`joint` sets: weights of the exits\' losses; see section "Weights of the losses".', "uniform"
    )
    rescale_gradients: bool = key(
        "`joint` sets: each of n exits after a block gives 1/n of its gradient (BoostNet).", False
    )
    distillation: Distillation | None = key(
        "`joint` sets: every IC also learns from the predictions of the last exit; see section"
        ' "Distillation".',
        None,
    )
    stop_gradient: bool = key(
        "`joint` sets: the loss of an exit trains its head and the blocks since the previous exit only"
        " (SWEET 2023).",
        False,
    )
    frozen_dropout: bool = key(
        "`separate` sets: keep the dropout of the frozen backbone (VGG, Wide ResNet) active, as in"
        " the released code.",
        False,
    )


class IcRecipe(Recipe):
    """How ICs are trained."""

    optimizer: Literal["sgd", "adam"] = key("`adam`, or `sgd` (with momentum).", "adam")
    lr: float = key("Highest learning rate.", 1e-3, gt=0)
    epochs: float = key("Passes over the training images; 0.5 is half a pass.", gt=0, unit="epochs")
    batch_size: int = key("Images per training step, and per batch of predictions.", 128, ge=2, unit="images")


class IcSet(IcRecipe, Anatomy, Regime):
    """An IC set with all keys filled in from the section or from `backbone`."""

    # 0 is allowed here, because a joint set may inherit it from the backbone; `check_set` refuses it
    epochs: float = key("As in the section `ics`; of a `joint` set as in `backbone`.", ge=0, unit="epochs")

    @property
    def trains_backbone(self) -> bool:
        """Whether training changes the backbone; if so, the checkpoint holds the complete network."""
        return self.training != "separate"

    @property
    def asked_shares(self) -> tuple[float, ...] | None:
        """The placement as shares of the backbone's cost; None if it has no shares."""
        if self.placement == "sdn":
            return SDN_SHARES
        if isinstance(self.placement, str) or not any(isinstance(item, float) for item in self.placement):
            return None
        return self.placement


class IcsSettings(IcRecipe, Anatomy):
    """Section `ics`."""

    sets: dict[Name, IcSet] = key(
        "IC sets: name -> `connection`, and other keys of this section for this set only. Methods use"
        " these names.",
        min_length=1,
    )
