"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import ztw
from ztw.study.config import check_config

ROOT = Path(__file__).parent.parent


def test_environment_yml_pins_what_the_lock_pins():
    pins = re.findall(r"^ +- ([\w-]+==[\w.]+)$", (ROOT / "environment.yml").read_text(), re.M)
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pins) > 10
    assert [pin for pin in pins if f"{pin} " not in lock] == []
    direct = re.findall(r'^    "([\w-]+)>=', (ROOT / "pyproject.toml").read_text(), re.M)
    needed = set(direct) - {"mypy", "pytest", "ruff", "snakefmt"}
    assert needed == {pin.split("==")[0] for pin in pins}


def test_the_readme_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(example, names)
    assert names["result"].exit_index.shape == (64,)
    assert names["accuracy"].shape == (2,)
    assert names["logits"].shape == (10, 64, 10)


def test_the_readme_config_is_valid():
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    assert check_config(yaml.safe_load(example), schema)["ics"]["head"] == "conv"


def test_the_lock_has_hashes_and_no_address():
    for name in ("requirements.lock", "tools.lock"):
        lock = (ROOT / name).read_text()
        assert "://" not in lock
        assert len(re.findall(r"^[\w.-]+==", lock, re.M)) <= lock.count("--hash=sha256:")


def test_importing_the_config_check_does_not_import_torch():
    code = "import sys, ztw.config, ztw.provenance, ztw.tables, ztw.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run(["python", "-c", code], check=False).returncode == 0


def test_only_tracking_imports_mlflow_and_nothing_imports_snakemake():
    for path in (ROOT / "ztw").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) snakemake", text, re.M), path
        if path.name != "tracking.py":
            assert not re.search(r"^\s*(import|from) mlflow", text, re.M), path


def test_no_module_hides_a_public_name():
    modules = {path.stem for path in (ROOT / "ztw").glob("*.py")}
    assert modules.isdisjoint(ztw.__all__)


@pytest.mark.parametrize("module", ["jobs", "tables", "figures", "fetch"])
def test_the_library_runs_without_mlflow_and_snakemake(module):
    code = (
        "import sys\n"
        "sys.modules['mlflow'] = sys.modules['snakemake'] = None\n"
        f"import ztw.{module}, ztw\n"
        "[getattr(ztw, name) for name in ztw.__all__]"
    )
    subprocess.run(["python", "-W", "error", "-c", code], check=True)
