"""Generate the key tables of config/README.md and the editors' JSON schema from the settings (`make manual`)."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from ztw.files import write_text
from ztw.study.logits_settings import LogitsSet, LogitsSettings
from ztw.study.section import Section
from ztw.study.settings import (
    DataSettings,
    EnsemblesSettings,
    EvaluationSettings,
    FolderSettings,
    LatencySettings,
    MethodSettings,
    OverrideSettings,
    Study,
)
from ztw.study.training_settings import BackboneSettings, IcsSettings, Regime

# NAME in `<!-- keys: NAME -->` ... `<!-- end -->` of the manual -> section of the table between
SECTIONS: dict[str, type[Section]] = {
    "study": Study,
    "data": DataSettings,
    "data.image_folders": FolderSettings,
    "backbone": BackboneSettings,
    "ics": IcsSettings,
    "ics.sets": Regime,
    "logits": LogitsSettings,
    "logits.sets": LogitsSet,
    "overrides": OverrideSettings,
    "ensembles": EnsemblesSettings,
    "methods": MethodSettings,
    "evaluation": EvaluationSettings,
    "latency": LatencySettings,
}
TYPES = {"array": "list", "object": "mapping", "string": "text"}
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
Schema = dict[str, Any]


def filled_manual(manual: str) -> str:
    """Replace the key tables in the manual's text by tables of the current settings."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- keys: {match[1]} -->\n{key_table(SECTIONS[match[1]])}<!-- end -->"

    return re.sub(r"<!-- keys: (\S+) -->\n.*?<!-- end -->", table, manual, flags=re.DOTALL)


def key_table(section: type[Section]) -> str:
    """Return a Markdown table of a section's keys: type, unit, range, default and meaning."""
    schema = section.model_json_schema()
    lines = ["| key | type, default | meaning |", "|---|---|---|"]
    for name, found in schema["properties"].items():
        if "description" in found:  # a nested section has its own table
            required = name in schema.get("required", ())
            lines.append(f"| `{name}` | {_kind(found, required)} | {found['description']} |")
    return "\n".join(lines) + "\n"


def _kind(found: Schema, required: bool) -> str:
    """Return type, unit and default of a key, such as "number > 0, epochs, `0.1`"."""
    options = [option for option in found.get("anyOf", [found]) if option.get("type") != "null"]
    kind = " or ".join(dict.fromkeys(text for option in options if (text := _type(option))))
    default = "required" if required else f"`{_as_yaml(found.get('default'))}`"
    return ", ".join(part for part in (kind, found.get("unit", ""), default) if part.strip("`"))


def _type(option: Schema) -> str:
    """Return type and range, such as "number > 0"; empty for a choice, because its meaning lists the values."""
    limits = [f"{sign} {option[limit]:g}" for limit, sign in LIMITS.items() if limit in option]
    kind: str = option.get("type", "")
    return " ".join([TYPES.get(kind, kind), *limits]) if "enum" not in option else ""


def _as_yaml(value: Any) -> str:
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return json.dumps(value).replace('"', "").replace("1e-", "1.0e-")


def editor_schema() -> Schema:
    """Return the JSON Schema of a study as a user writes it: IC sets and overrides may leave keys out."""
    schema = Study.model_json_schema()
    definitions = schema["$defs"]
    definitions["IcSet"]["required"] = ["connection"]
    definitions["EnsembleSettings"]["required"] = ["kind"]
    kinds = ("ics", "static", "cascade_of")
    definitions["MethodSettings"]["oneOf"] = [{"required": [kind]} for kind in kinds]
    schema["oneOf"] = [{"required": ["ics"]}, {"required": ["logits"]}]
    for name in ("IcSet", "EnsembleSettings"):  # defaults come from the section
        for found in definitions[name]["properties"].values():
            found.pop("default", None)
    changed = definitions["OverrideSettings"]["properties"]
    for name, section in (("data", "DataSettings"), ("backbone", "BackboneSettings"), ("ics", "IcsSettings")):
        part = copy.deepcopy(definitions[section])
        part.pop("required", None)
        definitions[f"Some{section}"] = part
        changed[name] = {"$ref": f"#/$defs/Some{section}", "description": changed[name]["description"]}
    for found in schema["properties"].values():
        if not isinstance(found.get("default"), str):
            found.pop("default", None)
    schema["title"] = "A study of ztw"
    return schema


def write_manual(root: Path) -> None:
    """Write the tables of config/README.md and config/study.schema.json below `root`."""
    manual = root / "config/README.md"
    write_text(manual, filled_manual(manual.read_text(encoding="utf-8")))
    write_text(root / "config/study.schema.json", json.dumps(editor_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write_manual(Path.cwd())
