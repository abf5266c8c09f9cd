"""Test the repository: locks, names, imports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ztw

ROOT = Path(__file__).parent.parent


def test_environment_yml_pins_what_the_lock_pins():
    pins = re.findall(r"^ +- ([\w-]+==[\w.]+)$", (ROOT / "environment.yml").read_text(), re.M)
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pins) > 10
    assert [pin for pin in pins if f"{pin} " not in lock] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["workflow"], *extras["onnx"]]
    needed = {re.split("[^\\w-]", requirement)[0] for requirement in listed}
    assert needed == {pin.split("==")[0] for pin in pins}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [("data/cifar10.npy", True), ("ztw/data/new.py", False), ("tests/data/new.py", False)],
)
def test_git_ignores_only_the_data_folder_of_the_checkout(path, ignored):
    """docs/container.md uses data/ of the checkout for data sets, but git must not ignore ztw/data and tests/data."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    asked = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "--quiet", path], check=False)
    assert asked.returncode == (0 if ignored else 1)


def test_the_lock_has_hashes_and_no_address():
    for name in ("requirements.lock", "tools.lock"):
        lock = (ROOT / name).read_text()
        assert "://" not in lock
        assert len(re.findall(r"^[\w.-]+==", lock, re.M)) <= lock.count("--hash=sha256:")


def test_no_module_hides_a_public_name():
    top = {path.stem for path in (ROOT / "ztw").iterdir()}
    assert top.isdisjoint(dir(ztw))


def test_a_study_and_jobs_that_compute_nothing_need_no_torch():
    """The import of torch takes longer than these jobs."""
    jobs = ("start_tracking", "track_cell", "aggregate", "plot_figures", "report_pipeline", "write_report")
    modules = ["study.config", "study.provenance", "progress", *(f"jobs.{job}" for job in jobs)]
    code = f"import sys, {', '.join(f'ztw.{module}' for module in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lint_finds_cycles_and_imports_of_higher_layers(tmp_path):
    """Each fault breaks another contract of the import linter."""
    shutil.copytree(ROOT / "ztw", tmp_path / "ztw")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, line in (
        ("exits/rules.py", "from ztw.models import backbone"),  # import of a higher layer
        ("models/heads.py", "from ztw.study import config"),
        ("models/backbone.py", "from ztw.models import network"),  # a cycle within a folder
        ("reporting/tables.py", "import mlflow.entities"),
        ("jobs/aggregate.py", "import snakemake"),
        ("jobs/predict.py", "import ztw"),
    ):
        with (tmp_path / "ztw" / name).open("a") as module:
            module.write(f"\n{line}\n")
    (tmp_path / "ztw/eleventh").mkdir()
    (tmp_path / "ztw/eleventh/__init__.py").write_text("")
    done = subprocess.run(["lint-imports", "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert re.findall("^(.*) (?:KEPT|BROKEN)", done.stdout, re.M)
    assert "KEPT" not in done.stdout, done.stdout
    assert "eleventh" in done.stdout


IMPORTS = """
import sys
sys.modules['mlflow'] = sys.modules['snakemake'] = None  # as where they are not installed
import ztw
ztw.build_backbone('resnet8')
assert 'torchvision' not in sys.modules, 'it takes seconds'
import ztw.data.prepare, ztw.jobs.cell, ztw.jobs.predict, ztw.reporting.tables
[getattr(ztw, name) for name in dir(ztw)]
"""


def test_the_library_runs_without_mlflow_and_snakemake_and_imports_torchvision_late():
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], check=True)
