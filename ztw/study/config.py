"""Read and check the config of a study. Imports no torch."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from ztw.errors import ZtwError, without_password
from ztw.study.overrides import study_cells
from ztw.study.plugins import load_plugins
from ztw.study.resolve import as_given, resolved
from ztw.study.settings import Study
from ztw.study.validate import validated

MOST_VALUES = 100_000  # in one config; the largest shipped config has a few hundred


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, keys that are not text, and numbers in base 8 or 60."""

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
                raise ZtwError(f"line {line}: the key {key!r} appears twice in one section; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Refuse numbers in base 8 and 60: YAML 1.1 reads 010 as 8 and 1:30 as 90."""
        is_int = node.tag == "tag:yaml.org,2002:int"
        number = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        if ":" in node.value or (is_int and re.fullmatch("[-+]?0[0-9_]+", node.value)):
            line = node.start_mark.line + 1
            raise ZtwError(
                f"line {line}: YAML reads {node.value} as {number}; write {number}, or put the value in quotes"
            )
        return number


for kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _StrictLoader.construct_number)


def read_config(path: Path | str) -> dict[str, Any]:
    """Read a study's YAML file.

    Raises:
        ZtwError: if the file cannot be read, is not a YAML mapping in UTF-8, or repeats a key.
    """
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
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # of PyYAML
        raise ZtwError(f"config {str(path)!r}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ZtwError(f"config {str(path)!r}: must be a mapping of keys, see config/README.md")
    _check_extent(config, path)
    return config


def _check_extent(config: dict[str, Any], path: Path | str) -> None:
    """Refuse YAML aliases (`*name`) that expand to a huge or endless mapping."""
    todo: list[Any] = [config]
    for _ in range(MOST_VALUES):
        if not todo:
            return
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    raise ZtwError(f"config {str(path)!r}: has more than {MOST_VALUES:,} values after expanding its aliases")


def heading(path: Path | str) -> str:
    """Return the comment at the start of a study's file, without passwords."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return without_password("".join(takewhile(lambda line: line.startswith("#"), lines)))


def study_name(path: Path | str) -> str:
    """Return the name of a study and of its results folder: the stem of the config's file name.

    Raises:
        ZtwError: if the name has characters that Snakemake or a shell interprets.
    """
    name = Path(path).stem
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ZtwError(
            f"config {str(path)!r}: {name!r} cannot be the name of a study; rename the file with letters, digits and"
            " '_', after the first character also '-' and '.'"
        )
    return name


def check_study(config: dict[str, Any]) -> Study:
    """Load the plugins of a config, check it, fill in its defaults and resolve every cell.

    Args:
        config: as read from YAML.

    Raises:
        ZtwError: for the first wrong key or value.
    """
    given = as_given(config)
    plugins = given.get("plugins", ())
    # Validation reports any other type
    if isinstance(plugins, tuple) and all(isinstance(name, str) for name in plugins):
        load_plugins(plugins)
    study = validated(resolved(given))
    return study.with_cells(study_cells(given, study))
