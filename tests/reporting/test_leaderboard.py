"""Test the leaderboard: joined by hand, and up to date with the published studies."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ztw.files import write_text
from ztw.reporting.leaderboard import COLUMNS, leaderboard, write_leaderboard

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results/reference"
STUDY = """
datasets: [d]
archs: [a]
seeds: [0, 1]
logits:
  sets:
    exits: {path: "exits-{seed}.npz", training: joint}
    small: {path: "small-{seed}.npz", training: joint}
ensembles: {fit_on: validation}
methods:
  sdn: {ics: exits}
  small: {static: small}
"""
TABLES = {
    "accuracy_at_budget": """dataset,arch,method,budget,mean,std,n,relative_cost,protocol
d,a,backbone alone,,0.9,0.01,2,1.0,held-out
d,a,sdn,0.25,,,0,,held-out
d,a,sdn,0.5,0.8,0.02,2,0.49,held-out
d,a,sdn,max,0.85,0.02,2,1.2,held-out
d,a,sdn,0.5,0.81,0.02,2,0.5,paper
d,a,small,0.5,0.7,,1,0.3,held-out
""",
    "frontier": """dataset,arch,unit,budget,kind,method
d,a,MACs,0.500000,static network,small
d,a,MACs,0.500000,early exits,sdn
d,a,time,0.500000,static network,other
""",
    "differences": """dataset,arch,protocol,budget,first,second,difference,low,high,within_noise,seeds
d,a,held-out,0.5,small,sdn,-0.09,-0.11,0.07,False,1
d,a,paper,0.5,small,sdn,-0.5,-0.6,-0.4,False,1
""",
    "latency": """dataset,arch,method,budget,runtime,batch_size,relative_time,threads
d,a,backbone alone,,onnxruntime,1,1.0,1
d,a,sdn,0.5,pytorch,1,0.9,1
d,a,sdn,0.5,onnxruntime,1,0.6,1
d,a,sdn,0.5,onnxruntime,1,0.5,2
d,a,sdn,0.5,onnxruntime,64,0.4,1
d,a,small,,onnxruntime,1,0.2,1
""",
}


@pytest.fixture
def rows(tmp_path):
    """Method and budget -> row of a study that was written by hand."""
    study = tmp_path / "study"
    write_text(study / "config.yaml", STUDY)
    for name, content in TABLES.items():
        write_text(study / f"tables/{name}.csv", content)
    write_text(study / "d/a/seed1/predictions/exits.safetensors", "")
    for seed, commit in enumerate(["0.1.0 aaa", "0.1.0 bbb"]):
        write_text(study / f"d/a/seed{seed}/provenance.json", json.dumps({"published_at": commit}))
    write_leaderboard(tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as stream:
        return {(row["method"], row["budget"]): row for row in csv.DictReader(stream)}


def test_a_row_has_accuracy_distance_time_and_origin(rows):
    found = rows["sdn", "0.5"]
    values = ["study", "d", "a", "sdn", "0.5", "early exits", "0.8", "0.02", "2", "0.49"]
    values += ["small", "0.09", "-0.07", "0.11", "0.6", "onnxruntime", "1", "1", "study/config.yaml"]
    values += ["study/d/a/seed1/predictions/exits.safetensors", "0.1.0 aaa, 0.1.0 bbb"]
    assert found == dict(zip(COLUMNS, values, strict=True))


def test_rows_are_those_of_held_out_thresholds_that_fit_their_budget(rows):
    assert list(rows) == [("backbone alone", ""), ("sdn", "0.5"), ("sdn", "max"), ("small", "0.5")]
    assert rows["sdn", "max"]["distance"] == ""
    assert rows["backbone alone", ""]["relative_time"] == "1.0"


def test_a_static_network_has_its_one_time_and_no_distance_to_itself(rows):
    assert rows["small", "0.5"]["relative_time"] == "0.2"
    assert rows["small", "0.5"]["distance"] == ""


def test_the_leaderboard_is_up_to_date_with_the_published_studies(tmp_path):
    again = tmp_path / "leaderboard.csv"
    table = leaderboard(REFERENCE)
    write_text(again, table.to_csv(index=False, lineterminator="\r\n"))
    message = "run `python workflow/publish.py results/reference/<study>`"
    assert again.read_bytes() == (REFERENCE / "leaderboard.csv").read_bytes(), message
