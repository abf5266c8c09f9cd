"""Test the real DAG: options of Snakemake that compute nothing, a plain terminal, changed images."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from tiny_study import ROOT, TINY, changed_config, command, copy_of, run

from ztw.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("data_root")


def test_other_test_images_train_nothing_again(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    record = folder / "results/tiny/data/digits/test.json"
    write_json(record, {**read_json(record), "changed": True})
    asked = run(folder, TINY, "--", "-n")
    assert "predict" in asked.stdout, asked.stdout + asked.stderr
    for rule in ("train_backbone", "train_ics", "train_network"):
        assert rule not in asked.stdout


def test_images_that_change_are_prepared_again_and_found_broken_before_anything_trains(tmp_path):
    images = tmp_path / "mine"
    for split, name, number in product(("train", "val"), ("cat", "dog"), range(8)):
        path = images / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 50 + number).save(path)
    folder = {"path": str(images), "size": 16, "stream": True}
    config = changed_config(tmp_path, datasets=["mine"], data={"image_folders": {"mine": folder}})
    records = [f"results/tiny/data/mine/{split}.json" for split in ("train", "test")]
    prepared = run(tmp_path, config, "--", *records)
    assert prepared.returncode == 0, prepared.stdout

    def to_do(record: str) -> bool:
        asked = run(tmp_path, config, "--", "-n", record)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        return "Nothing to be done" not in asked.stdout

    assert not any(map(to_do, records))
    changed = images / "val/dog/0.png"
    content = changed.read_bytes()
    changed.write_bytes(content[: len(content) // 2])
    assert [to_do(record) for record in records] == [False, True], "other test images train nothing again"
    failed = run(tmp_path, config)
    assert failed.returncode == 1
    assert f"{changed}: unreadable image" in failed.stdout
    assert not (tmp_path / "results/tiny/logs/train_backbone").exists()


@pytest.mark.parametrize(
    "question", [["-n"], ["-np"], ["--dry-run"], ["--rulegraph", "mermaid-js"], ["--list"]]
)
def test_the_output_of_a_question_to_snakemake_goes_to_the_screen(tmp_path, question):
    asked = run(tmp_path, TINY, "--", *question)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "train_backbone" in asked.stdout
    assert not (tmp_path / "results/tiny").exists(), "nothing was computed"


def test_a_terminal_with_plain_characters_only(finished):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command(), cwd=finished, env=environment, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "+-" in text
    assert "?" not in text


def test_the_example_of_a_plugin_runs_as_it_says(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = run(tmp_path, Path("examples/my_parts.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ics independent: a sample that leaves at exits 2 to 3 saves nothing") == 1
    assert "median-margin" in done.stdout
