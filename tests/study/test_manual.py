"""Test that the manual and the editors' schema match the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from ztw.study.manual import SECTIONS, editor_schema, filled_manual, key_table, write_manual

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("tests/config/*.yaml")])


def test_the_manual_matches_the_settings():
    manual = (ROOT / "config/README.md").read_text()
    assert filled_manual(manual) == manual, "run `make manual`"
    for name in SECTIONS:
        assert f"<!-- keys: {name} -->\n| key |" in manual


def test_the_committed_schema_matches_the_settings():
    assert json.loads((ROOT / "config/study.schema.json").read_text()) == editor_schema(), "run `make manual`"


def test_a_stale_manual_is_written_again(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/README.md").write_text("a\n<!-- keys: latency -->\nold\n<!-- end -->\nb\n")
    write_manual(tmp_path)
    written = (tmp_path / "config/README.md").read_text()
    assert written.startswith("a\n<!-- keys: latency -->\n| key | type, default | meaning |\n")
    assert "| `images` | integer >= 1, images, `256` | " in written
    assert written.endswith("<!-- end -->\nb\n")


@pytest.mark.parametrize("section", SECTIONS.values(), ids=list(SECTIONS))
def test_every_key_has_a_meaning(section):
    for line in key_table(section).splitlines()[2:]:
        _, key, kind, meaning, _ = (
            line.split(" | ") if line.count(" | ") == 4 else ("", *line.split(" | "), "")
        )
        assert key
        assert kind
        assert len(meaning) > 5, line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_an_editor_finds_no_mistake_in_a_shipped_study(path):
    schema = editor_schema()
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 1},
        {"backbone": {"lr": "fast"}},
        {"overrides": [{"backbone": {"lrs": 1}}]},
        {"methods": {"a": {"rule": "entropy"}}},
        {"methods": {"a": {"ics": "b", "static": "resnet8"}}},
        {"seeds": [-1]},
    ],
)
def test_an_editor_finds_mistakes(change):
    study = {**yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text()), **change}
    assert list(Draft202012Validator(editor_schema()).iter_errors(study))
