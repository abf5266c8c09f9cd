"""Test the rows about devices, and the note under a table that mixes devices or precisions."""

from __future__ import annotations

import pytest

from ztw.files import write_json
from ztw.reporting.devices import device_rows, mixed


def part(name: str, device: str = "CPU A", precision: str = "fp32") -> dict:
    return {"part": name, "device": device, "precision": precision, "threads": 2, "host": "node1"}


@pytest.fixture
def rows(tmp_path):
    """Return rows of d/a, whose seed 1 was trained on another CPU, and of d/b on one CPU. Two methods share parts."""

    def method(arch: str, seed: int, name: str, *parts: dict) -> str:
        path = str(tmp_path / f"{arch}{seed}{name}.json")
        write_json(path, {"dataset": "d", "arch": arch, "seed": seed, "method": name, "computed": parts})
        return path

    return device_rows(
        [
            method("a", 0, "sdn", part("backbone"), part("ics i"), part("predictions i")),
            method("a", 0, "pabee", part("backbone"), part("ics i"), part("predictions i")),
            method("a", 1, "sdn", part("backbone", "CPU B", "bf16"), part("predictions i")),
            method("b", 0, "sdn", part("backbone", "CPU B", "bf16")),
        ]
    )


def test_every_part_of_every_cell_is_a_row(rows):
    assert len(rows) == 3 + 2 + 1
    assert rows[0] == {**part("backbone"), "dataset": "d", "arch": "a", "seed": 0, "kinds": 2}
    assert [row["kinds"] for row in rows] == [2] * 5 + [1]


def test_only_mixed_tables_have_a_note(rows):
    assert mixed(rows) == {
        ("d", "a"): "Mixed: computed on 2 kinds of device or precision, on which accuracies can depend:"
        " CPU A, fp32 (seed 0, 1); CPU B, bf16 (seed 1). Which part where: devices.csv."
    }


def test_methods_in_int8_are_not_mixed(rows):
    other = [{**row, **part("x", precision="int8")} if row["seed"] else row for row in rows]
    assert mixed(other) == {}


@pytest.mark.parametrize("change", [{"host": "node2"}, {"threads": 1}])
def test_nodes_of_one_kind_are_not_mixed(rows, change):
    alike = [{**row, **part("x"), **change} if row["seed"] else row for row in rows if row["arch"] == "a"]
    assert mixed(alike) == {}


def test_another_precision_on_the_same_device_is_mixed(rows):
    other = [{**row, **part("x", precision="bf16")} if row["seed"] else row for row in rows]
    assert "CPU A, fp32 (seed 0); CPU A, bf16 (seed 1)" in mixed(other)["d", "a"]
