"""A study's config: read strictly, checked against its definition, its cells worked out. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ztw.errors import ZtwError
from ztw.study.overrides import study_cells
from ztw.study.plugins import load_plugins
from ztw.study.resolve import as_given, resolved
from ztw.study.settings import Study
from ztw.study.validate import validated

MOST_VALUES = 100_000  # of a study; the largest there is has some hundred


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key is text and stands once in its mapping, and a number is what it looks like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line, merged = key_node.start_mark.line + 1, key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merged else self.construct_object(key_node, deep=True)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ZtwError(f"line {line}: the key {key!r} is not text")
            if not isinstance(key, str):
                raise ZtwError(
                    f"line {line}: YAML reads the key {key_node.value} as {key!r}; put it in quotes"
                )
            if key in seen:
                raise ZtwError(f"line {line}: the key {key!r} stands twice in one section; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """YAML 1.1 has numbers of base 8 and 60: 010 is 8, and 1:30 is 90."""
        whole = node.tag == "tag:yaml.org,2002:int"
        number = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if ":" in node.value or (whole and re.fullmatch("[-+]?0[0-9_]+", node.value)):
            line = node.start_mark.line + 1
            raise ZtwError(
                f"line {line}: YAML reads {node.value} as {number}; write that, or put it in quotes"
            )
        return number


for kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _StrictLoader.construct_number)


def read_config(path: Path | str) -> dict[str, Any]:
    """Read a study's file; raises ZtwError, one line, when it is no mapping in YAML and UTF-8, or names a key twice."""
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506
    except OSError as error:
        raise ZtwError(f"config {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ZtwError(
            f"config {str(path)!r}: not UTF-8 (byte {error.object[error.start]:#x} at {error.start}); save it as UTF-8"
        ) from error
    except ZtwError as error:
        raise ZtwError(f"config {str(path)!r}: {error}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # PyYAML's own
        raise ZtwError(f"config {str(path)!r}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ZtwError(f"config {str(path)!r}: must be a mapping of keys, see config/README.md")
    _check_extent(config, path)
    return config


def _check_extent(config: dict[str, Any], path: Path | str) -> None:
    """Raise ZtwError where aliases (`*name`) make a small file a huge mapping, or one that holds itself."""
    todo: list[Any] = [config]
    for _ in range(MOST_VALUES):
        if not todo:
            return
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    raise ZtwError(f"config {str(path)!r}: has more than {MOST_VALUES:,} values, aliases followed")


def study_name(path: Path | str) -> str:
    """What a study and its folder are called: its file's name without the suffix.

    Raises ZtwError for one that a file name, a pattern of Snakemake's or a shell could take for something else.
    """
    name = Path(path).stem
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ZtwError(
            f"config {str(path)!r}: a study is named after its file, and {name!r} is no such name: letters, digits,"
            " '_', and after the first also '-' and '.'; rename the file"
        )
    return name


def check_study(config: dict[str, Any]) -> Study:
    """The study that a config means, every default filled in and every cell worked out; its plugins are loaded.

    config: as read from YAML. Raises ZtwError: one line that names the key, the value and what is allowed.
    """
    given = as_given(config)
    plugins = given.get("plugins", ())
    if isinstance(plugins, tuple) and all(
        isinstance(name, str) for name in plugins
    ):  # else validation says so
        load_plugins(plugins)
    study = validated(resolved(given))
    return study.with_cells(study_cells(given, study))
