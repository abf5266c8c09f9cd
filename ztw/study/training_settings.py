"""The keys of `backbone` and `ics`: how networks are built and trained."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from ztw.catalogue.architectures import SDN_SHARES, Placement
from ztw.study.section import Name, Section, Unique, is_number, key, one_of, part

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

    epochs: float = key("passes over the training part; 0.5 is half of one", ge=0, unit="epochs")
    batch_size: int = key("images of a training step", 128, ge=2, unit="images")
    optimizer: Literal["sgd", "adam"] = key("`sgd` (with momentum) or `adam`", "sgd")
    lr: float = key("the highest learning rate", 0.1, gt=0)
    weight_decay: float = key("L2 penalty, as the optimizer applies it", 5e-4, ge=0)
    momentum: float = key("of SGD", 0.9, ge=0, lt=1)
    schedule: Literal["milestones", "one_cycle"] = key("how the learning rate goes", "milestones")
    milestones: Unique[Annotated[int, key("", ge=1)]] = key(
        "after each of these epochs the learning rate is multiplied by `gamma`", (), unit="epochs"
    )
    gamma: float = key("see `milestones`", 0.1, gt=0, le=1)


class BackboneSource(Section):
    """Where a backbone comes from."""

    source: Literal["train", "torchvision", "file", "url"] = key(
        "where the weights come from: `train` (random, then trained), `torchvision` (its pretrained ones), `url`"
        " or `file`. Whatever the source, `epochs` more than 0 train them on",
        "train",
    )
    path: str | None = key(
        "of source `file`: safetensors, or a torch file without pickled code. A `module.` prefix and nesting"
        " under `state_dict` are removed; names may differ from ours when order and shapes agree; anything else"
        " is refused with a list",
        None,
    )
    url: str | None = key("of source `url`", None, pattern="^(https?|file)://")
    sha256: str | None = key(
        "of source `url`; for a `file` it may be given too", None, pattern="^[0-9a-f]{64}$"
    )
    pretrained: Literal["default", "v1"] = key(
        "of source `torchvision`: `default` = the best weights it has, `v1` = its first ones (released: what"
        " torchvision had then)",
        "default",
    )
    expected_accuracy: float | None = key(
        "of sources `file`, `url` and `torchvision`: the accuracy that the weights are known to have on the test"
        " images. Before anything is trained theirs is measured, and more than 0.01 away from it the study stops:"
        " that the shapes agree does not prove that the same is computed",
        None,
        ge=0,
        le=1,
        unit="share",
    )


class BackboneBuild(Section):
    """How a backbone is built."""

    shortcut: Literal["conv", "pad"] = key(
        "of the CIFAR ResNets: `conv` = 1x1 convolutions where the shape changes, `pad` = without parameters"
        " (option A)",
        "conv",
    )
    ic_features: Literal["before_relu", "after_relu"] = key(
        "of the CIFAR ResNets: whether ICs see a block's sum before its last ReLU (released) or after it",
        "before_relu",
    )
    last_norm_momentum: float = key(
        "of `wide_resnet_32_4`: momentum of its last BatchNorm (released: 0.9)", 0.1, gt=0, le=1
    )
    init: Literal["torch", "released"] = key(
        "random weights: `torch` = PyTorch's, `released` = normal, variance 2 / (kernel area x outputs) (Kaiming, fan"
        " out) for the convolutions of ResNets and VGG, Xavier's for the Wide ResNet's, PyTorch's for MobileNet, which"
        " has no initialiser in the released code. The paper's architectures only",
        "torch",
    )


class BackboneSettings(Recipe, BackboneBuild, BackboneSource):
    """Section `backbone`."""

    epochs: float = key("passes over the training part; 0.5 is half of one", 0.0, ge=0, unit="epochs")


class Anatomy(Section):
    """How the ICs of a set are built."""

    head: Annotated[str, part("head")] = key(
        "3x3 convolution, ReLU, pool to 4x4, Linear; or `pool`: pool to 4x4, Linear (SDN's). After a vector (VGG's"
        " fully connected layer) one Linear, after tokens their mean, LayerNorm and a Linear. The convolution's"
        " stride and padding, as released: 1 and 1 for images below 64 pixels; below 224 (Tiny ImageNet) 2, and 2"
        " where the block's side is above 8, else 1; from 224 on (ImageNet) 2 and 1 where it is above 8, else 1 and"
        " 1",
        "conv",
    )
    pooling: Literal["mixed", "avg", "max"] = key(
        "`mixed` = learned share of max and average (SDN's), `avg`, `max`", "mixed"
    )
    width: float = key(
        "channels of the head's convolution as a share of the block's", 1.0, gt=0, unit="share"
    )
    layer_norm: bool = key(
        "LayerNorm on the previous exit's logits in a cascade (the released recipe for ImageNet)", False
    )
    init: Literal["torch", "released"] = key(
        "as `backbone.init`, of the ICs: `released` also draws the share of maximum in a mixed pool from U(0, 1)"
        " (`torch`: 0.5), on MobileNet nothing else",
        "torch",
    )
    placement: Annotated[Placement, *_PLACEMENT] = key(
        "after every block; `every 2`, `every 3`, ...; a list of block indices from 0 (`[2, 5, 8]`); or of"
        " fractions of the backbone's cost (`[0.15, 0.3, 0.45]`), each taken to the nearest block; `sdn` = as SDN's"
        " authors: fractions 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, on `mobilenet` blocks 2, 4, 6, 8, 11",
        "all",
    )


class Regime(Section):
    """The keys that an IC set cannot take from the section."""

    connection: Literal["independent", "cascade", "cascade_detached", "boosted"] = key(
        "`independent`: each IC by itself. `cascade`: each also sees the previous IC's logits."
        " `cascade_detached`: the same with the gradient stopped there (ZTW; its released code does not stop it at the"
        " IC on VGG's fully connected layer, the paper does, and so do we). `boosted`: each exit adds to half of"
        " the previous one's logits, gradient stopped (BoostNet; with `training` `joint` or `layer_wise`)"
    )
    training: Literal["separate", "layer_wise", "joint"] = key(
        "`separate` = the ICs only, on the frozen backbone; `layer_wise` = exit after exit, the blocks since the"
        " last one with it, all before frozen, the epochs shared out over the exits (so give it more); `joint` ="
        " backbone and ICs together",
        "separate",
    )
    start: Literal["backbone", "scratch"] = key(
        "from the cell's trained backbone, or from `scratch`", "backbone"
    )
    exit_weights: Annotated[ExitWeights, *_EXIT_WEIGHTS] = key(
        "of a `joint` set: `uniform` = 1 each; `depth` = deeper exits weigh more, j / sum of j (PABEE);"
        " `growing` = each IC, in epoch e of E, min(tau, 0.01 + tau e / E), tau its share of the backbone's cost: of"
        " the placement where it says one (of `sdn` 0.15, 0.3, ... in order), else of its block (SDN); or a number for"
        " every exit",
        "uniform",
    )
    rescale_gradients: bool = key(
        "of a `joint` set: each of the exits to come sends an equal share of the gradient (BoostNet)", False
    )
    frozen_dropout: bool = key(
        "of a `separate` set: whether the frozen backbone's dropout stays on while the ICs are trained (released;"
        " VGG and Wide ResNet have some)",
        False,
    )


class IcRecipe(Recipe):
    """How ICs are trained."""

    optimizer: Literal["sgd", "adam"] = key("`adam`, or `sgd` (with momentum)", "adam")
    lr: float = key("the highest learning rate", 1e-3, gt=0)
    epochs: float = key(
        "passes over the training part; a `joint` set's recipe, from here down, is that of `backbone` unless the"
        " set says otherwise",
        gt=0,
        unit="epochs",
    )
    batch_size: int = key("images of a training step, and of predictions", 128, ge=2, unit="images")


class IcSet(IcRecipe, Anatomy, Regime):
    """An IC set with all keys filled in from the section or from `backbone`."""

    # A joint set may inherit 0 from an untrained backbone; check_set reports it
    epochs: float = key("as in the section", ge=0, unit="epochs")

    @property
    def trains_backbone(self) -> bool:
        """Whether training changes the backbone; if so, the checkpoint holds the complete network."""
        return self.training != "separate"

    @property
    def asked_shares(self) -> tuple[float, ...] | None:
        """The requested exits as shares of the backbone's cost; None if the placement has no shares."""
        if self.placement == "sdn":
            return SDN_SHARES
        if isinstance(self.placement, str) or not any(isinstance(item, float) for item in self.placement):
            return None
        return self.placement


class IcsSettings(IcRecipe, Anatomy):
    """Section `ics`."""

    sets: dict[Name, IcSet] = key(
        "name -> `connection` and any other key of this section, for that set alone; methods refer to these names",
        min_length=1,
    )
