"""Test the container image and the profiles, as far as possible without a container engine or a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_study
import yaml
from snakemake.cli import get_argument_parser

ROOT = Path(__file__).parent.parent


def one_line(text: str) -> str:
    """Return a text with its continued lines joined, as in a shell."""
    return " ".join(text.replace("\\\n", " ").split())


INSTRUCTIONS = [
    line.split(" ", 1)
    for line in re.sub(r"\\\n", " ", (ROOT / "Containerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]


def test_every_instruction_is_known_and_the_first_names_the_base_image():
    assert INSTRUCTIONS[0] == ["FROM", "docker.io/library/python:3.11-slim"]
    assert {name for name, _ in INSTRUCTIONS} <= {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "CMD"}
    assert "python=3.11" in (ROOT / "environment.yml").read_text()


def test_every_file_it_copies_is_in_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    copied = [source for name, rest in INSTRUCTIONS if name == "COPY" for source in rest.split()[:-1]]
    assert copied
    assert [source for source in copied if not (ROOT / source).is_file()] == []
    assert not tracked or set(copied) <= set(tracked)


def test_it_installs_what_make_installs_with_the_same_hashes():
    makefile, image = (
        one_line((ROOT / "Makefile").read_text()),
        one_line((ROOT / "Containerfile").read_text()),
    )
    (with_pip,) = re.findall(r"-m (pip install .*?--root-user-action=ignore)", makefile)
    assert f"python -m {with_pip} " in image
    (options, lock) = re.findall(r"\$\(UV\) pip sync (.*?) (\S+\.lock)", makefile)[0]
    (in_image,) = re.findall(rf"uv pip sync (.*?) {re.escape(lock)}", image)
    assert set(options.split()) <= set(in_image.split())
    assert set(in_image.split()) - set(options.split()) == {"--system", "--no-cache"}
    assert "--require-hashes" in options
    for setting in ("MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true", "UV_PYTHON_DOWNLOADS=never"):
        assert setting in image


APPTAINER = """#!/bin/sh
# says its version, and runs what it is told to run, here instead of in the image
[ "$1" = --version ] && { echo apptainer version 1.3.4; exit; }
echo "$@" >> "$APPTAINER_LOG"
while [ "$1" != sh ] && [ "$1" != bash ]; do shift; done
exec "$@"
"""


def test_jobs_run_in_the_image_that_ztw_image_names(data_root, tmp_path, monkeypatch):
    """One job of the tiny study runs in a stub of apptainer, with the image and the checkout's code."""
    stub = tmp_path / "bin/apptainer"
    stub.parent.mkdir()
    stub.write_text(APPTAINER)
    stub.chmod(0o755)
    image = tmp_path / "ztw.sif"
    image.touch()
    python = stub.with_name("python")  # stands for the image's Python
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINER_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("ZTW_IMAGE", str(image))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--cores", "1"]
    command += ["--configfile", str(tiny_study.TINY), "--sdm", "apptainer", "--apptainer-args=--nv"]
    target = "results/tiny/data/digits/test.json"
    done = subprocess.run([*command, "--", target], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / target).exists()
    (call,) = (tmp_path / "log").read_text().splitlines()
    assert "--nv" in call
    assert f" {image} " in call
    assert "prepare_dataset.py" in call


PROFILES = sorted((ROOT / "workflow/profiles").glob("*/config.yaml"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.parent.name)
def test_every_entry_of_a_profile_is_an_option_of_snakemake_s(profile):
    """Options that start with the executor's name are not checked, because the executor's plugin is not installed."""
    content = yaml.safe_load(profile.read_text())
    known = {option.removeprefix("--") for option in get_argument_parser()._option_string_actions}
    executor = content.get("executor", "local")
    assert content
    assert [key for key in content if key not in known and not key.startswith(f"{executor}-")] == []


def test_profiles_name_existing_rules():
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^ *rule (\w+):", path.read_text(), re.M)
    }
    for profile in PROFILES:
        content = yaml.safe_load(profile.read_text())
        for part in ("set-resources", "set-threads", "groups"):
            assert set(content.get(part, {})) <= rules, profile
