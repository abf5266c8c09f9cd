"""The tables of config/README.md and the schema for editors, made from the settings: `make manual` writes both."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from ztw.files import write_text
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

# Between `<!-- keys: NAME -->` and `<!-- end -->` the manual has the table of this section.
SECTIONS: dict[str, type[Section]] = {
    "study": Study,
    "data": DataSettings,
    "data.image_folders": FolderSettings,
    "backbone": BackboneSettings,
    "ics": IcsSettings,
    "ics.sets": Regime,
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
    """The manual's text with the table of every section as the settings have it."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- keys: {match[1]} -->\n{key_table(SECTIONS[match[1]])}<!-- end -->"

    return re.sub(r"<!-- keys: (\S+) -->\n.*?<!-- end -->", table, manual, flags=re.DOTALL)


def key_table(section: type[Section]) -> str:
    """A Markdown table of a section's keys: type, unit, range and default, and what each means."""
    schema = section.model_json_schema()
    lines = ["| key | type, default | meaning |", "|---|---|---|"]
    for name, found in schema["properties"].items():
        if "description" in found:  # sections have a table of their own
            required = name in schema.get("required", ())
            lines.append(f"| `{name}` | {_kind(found, required)} | {found['description']} |")
    return "\n".join(lines) + "\n"


def _kind(found: Schema, required: bool) -> str:
    """ "number > 0, epochs, `0.1`"."""
    options = [option for option in found.get("anyOf", [found]) if option.get("type") != "null"]
    kind = " or ".join(dict.fromkeys(text for option in options if (text := _type(option))))
    default = "required" if required else f"`{_as_yaml(found.get('default'))}`"
    return ", ".join(part for part in (kind, found.get("unit", ""), default) if part)


def _type(option: Schema) -> str:
    """ "number > 0"; nothing for a choice, which the meaning explains."""
    limits = [f"{sign} {option[limit]:g}" for limit, sign in LIMITS.items() if limit in option]
    kind: str = option.get("type", "")
    return " ".join([TYPES.get(kind, kind), *limits]) if "enum" not in option else ""


def _as_yaml(value: Any) -> str:
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return json.dumps(value).replace('"', "").replace("1e-", "1.0e-")


def editor_schema() -> Schema:
    """JSON Schema of a study as its author writes it: sets and overrides say only what differs."""
    schema = Study.model_json_schema()
    definitions = schema["$defs"]
    definitions["IcSet"]["required"] = ["connection"]
    definitions["EnsembleSettings"]["required"] = ["kind"]
    definitions["MethodSettings"]["oneOf"] = [{"required": ["ics"]}, {"required": ["static"]}]
    for name in ("IcSet", "EnsembleSettings"):  # what is left out comes from the section
        for found in definitions[name]["properties"].values():
            found.pop("default", None)
    changed = definitions["OverrideSettings"]["properties"]
    for name, whole in (("data", "DataSettings"), ("backbone", "BackboneSettings"), ("ics", "IcsSettings")):
        part = copy.deepcopy(definitions[whole])
        part.pop("required", None)
        definitions[f"Some{whole}"] = part
        changed[name] = {"$ref": f"#/$defs/Some{whole}", "description": changed[name]["description"]}
    for found in schema["properties"].values():
        if not isinstance(found.get("default"), str):
            found.pop("default", None)
    schema["title"] = "A study of ztw"
    return schema


def write_manual(root: Path) -> None:
    """Write config/README.md's tables and config/study.schema.json below `root`."""
    manual = root / "config/README.md"
    write_text(manual, filled_manual(manual.read_text(encoding="utf-8")))
    write_text(root / "config/study.schema.json", json.dumps(editor_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write_manual(Path.cwd())
