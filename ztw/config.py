"""A study's config: filled with defaults and checked before anything runs. Imports no torch: it must be quick."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, cast

from jsonschema import Draft202012Validator, ValidationError, validators

from ztw.errors import ZtwError

# side of the images in pixels
BUILT_IN_DATASETS = {"fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "digits": 8}
SMALLEST_IMAGE = {"vgg16_bn": 32}
BLOCKS = {"vgg16_bn": 14, "wide_resnet_32_4": 15, "mobilenet": 13}


def _integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 1.0 is none: it would break later


def _number(_: object, value: object) -> bool:
    return _integer(_, value) or (isinstance(value, float) and math.isfinite(value))


Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _integer).redefine("number", _number),
)


def check_config(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the config with every default filled in.

    config: as read from YAML; schema: workflow/schemas/config.schema.yaml.
    Raises ZtwError: one line that names the key, the value and what is allowed.
    """
    filled = copy.deepcopy(config)
    _fill(filled, schema)
    errors = sorted(Validator(schema).iter_errors(filled), key=lambda error: error.json_path)
    if errors:
        raise ZtwError(_describe(errors[0]))
    for check in (
        _check_datasets,
        _check_sizes,
        _check_methods,
        _check_placement,
        _check_schedules,
        _check_tracking,
    ):
        check(filled)
    return filled


def _fill(config: Any, schema: dict[str, Any]) -> None:
    """Set the schema's defaults, in place, however deep."""
    if not isinstance(config, dict):
        return
    for key, part in schema.get("properties", {}).items():
        if key not in config and "default" in part:
            config[key] = copy.deepcopy(part["default"])
        if key in config:
            _fill(config[key], part)
    if isinstance(schema.get("additionalProperties"), dict):
        for value in config.values():
            _fill(value, schema["additionalProperties"])


def _describe(error: ValidationError) -> str:
    """A schema error as one line: key, value, what is allowed."""
    key = ".".join(map(str, error.absolute_path)) or "config"
    value, rule = cast(Any, error.instance), cast(Any, error.validator_value)
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]  # type: ignore[index]
            extra = sorted(set(value) - set(known))[0]
            place = f"{key}.{extra}" if error.absolute_path else extra
            return f"{place}: unknown key; known: {', '.join(known)}"
        case "required":
            missing = next(name for name in rule if name not in value)
            return f"{key}: the key {missing!r} is missing"
        case "enum":
            known = ", ".join("null" if item is None else str(item) for item in rule)
            return f"{key}: {value!r} is unknown; known: {known}"
        case "type":
            wanted = " or ".join(rule) if isinstance(rule, list) else rule
            return f"{key}: {value!r} is not of type {wanted}{_number_hint(value, wanted)}"
        case "minItems" | "minProperties":
            return f"{key}: is empty, must name at least one"
        case "uniqueItems":
            return f"{key}: {value!r} names something twice; each may stand once"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            sign = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
            return f"{key}: {value!r} must be {sign[error.validator]} {rule}"
        case _:
            return f"{key}: {value!r} must match {rule}{_number_hint(value, 'number')}"


def _number_hint(value: Any, wanted: str) -> str:
    """YAML 1.1 reads 1e-3 as text."""
    if not isinstance(value, str) or not ("number" in wanted or "integer" in wanted):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    plain = int(number) if "integer" in wanted and number.is_integer() else number
    return f" (YAML reads it as text: write {plain!r}, or with a point as in 1.0e-3)"


def _check_datasets(config: dict[str, Any]) -> None:
    folders = config["data"]["image_folders"]
    for name in folders:
        if name in BUILT_IN_DATASETS:
            raise ZtwError(f"data.image_folders.{name}: is the name of a built-in data set; choose another")
    for name in config["datasets"]:
        if name not in BUILT_IN_DATASETS and name not in folders:
            raise ZtwError(
                f"datasets: {name!r} is unknown; known: {', '.join([*BUILT_IN_DATASETS, *folders])};"
                " your own images go under data.image_folders"
            )


def _check_sizes(config: dict[str, Any]) -> None:
    folders = config["data"]["image_folders"]
    for dataset in config["datasets"]:
        size = folders[dataset]["size"] if dataset in folders else BUILT_IN_DATASETS[dataset]
        for arch in config["archs"]:
            if size < SMALLEST_IMAGE.get(arch, 1):
                raise ZtwError(
                    f"archs: {arch!r} needs images of at least {SMALLEST_IMAGE[arch]} pixels a side,"
                    f" {dataset} has {size}"
                )


def _check_methods(config: dict[str, Any]) -> None:
    sets = config["ics"]["sets"]
    for name, method in config["methods"].items():
        if method["ics"] not in sets:
            raise ZtwError(
                f"methods.{name}.ics: {method['ics']!r} is not in ics.sets; listed: {', '.join(sets)}"
            )


def blocks(arch: str) -> int:
    """Number of blocks a head can sit on: 3n for the ResNet of 6n+2 layers."""
    if arch in BLOCKS:
        return BLOCKS[arch]
    return (int(arch.removeprefix("resnet")) - 2) // 2


def _check_placement(config: dict[str, Any]) -> None:
    placement = config["ics"]["placement"]
    if isinstance(placement, str):
        if placement != "all":
            raise ZtwError(
                f"ics.placement: {placement!r} is unknown; known: all, a list of block indices, a list of fractions"
            )
        return
    if any(isinstance(item, float) for item in placement):
        for item in placement:
            if not 0 < item <= 1:
                raise ZtwError(f"ics.placement: {item!r}: a fraction of the cost must lie in (0, 1]")
    else:
        for arch in config["archs"]:
            for item in placement:
                if not 0 <= item < blocks(arch):
                    raise ZtwError(f"ics.placement: {item!r}: {arch} has blocks 0..{blocks(arch) - 1}")
    if any(later <= earlier for earlier, later in pairwise(placement)):
        raise ZtwError(f"ics.placement: {placement!r} must be increasing")


def _check_schedules(config: dict[str, Any]) -> None:
    for section in ("backbone", "ics"):
        recipe = config[section]
        if recipe["schedule"] == "one_cycle" and recipe["milestones"]:
            raise ZtwError(
                f"{section}.milestones: {recipe['milestones']!r} has no meaning with schedule one_cycle;"
                " leave it out or set schedule to milestones"
            )
        late = [epoch for epoch in recipe["milestones"] if epoch >= recipe["epochs"]]
        if late:
            raise ZtwError(
                f"{section}.milestones: {late[0]} is not before the last of {recipe['epochs']} epochs"
            )


def _check_tracking(config: dict[str, Any]) -> None:
    tracking = config["tracking"]
    if tracking not in ("sqlite", "none") and "://" not in tracking:
        raise ZtwError(f"tracking: {tracking!r} is unknown; known: sqlite, none, or a tracking server's URI")
