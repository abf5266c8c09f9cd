"""Test the package: its version, its light dependencies, and one line for each optional package that is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
import yaml

import ztw
from ztw.evaluation.advice import Advice
from ztw.evaluation.advice_option import Option
from ztw.extras import EXTRAS, extra_of, missing, need

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOR_DEVELOPERS = {"dev", "docs"}


def names(requirements: list[str]) -> set[str]:
    """Return the names of requirements, as in `seaborn>=0.13`."""
    return {re.split(r"[^\w-]", one)[0].lower() for one in requirements}


def test_the_version_is_the_same_everywhere():
    """Only ztw/version.py has to be edited; CITATION.cff and the changelog cannot read it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading is not None
    assert heading[1] == citation["version"] == ztw.__version__
    assert "version" not in PROJECT
    released = str(citation.get("date-released", "unreleased"))
    assert heading[2] == released


def test_the_extras_are_those_of_pyproject():
    """Of the packages that ztw imports; ztw/extras.py has their import names."""
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {*EXTRAS, *FOR_DEVELOPERS, "all"}
    (everything,) = extras["all"]
    assert everything == f"ztw[{','.join(sorted(EXTRAS))}]"
    homes = packages_distributions()
    for name, extra in EXTRAS.items():
        found = [{home.lower() for home in homes[package]} for package in extra.packages]  # mlflow has two
        assert all(home & names(extras[name]) for home in found), name
        assert len(extra.packages) == len(names(extras[name])), name


def test_the_library_needs_no_extra(tmp_path):
    """`import ztw`, from the cut to `infer`, and the help of the command: as if no extra was installed."""
    absent = [package for extra in EXTRAS.values() for package in extra.packages]
    absent = sorted(set(absent) - {"pydantic", "rich"})  # typer needs them
    code = (
        f"import sys, runpy\nsys.modules.update(dict.fromkeys({absent}))\nsys.path.insert(0, {str(ROOT)!r})\n"
    )
    code += f"runpy.run_path({str(ROOT / 'tests/library_path.py')!r}, run_name='__main__')\n"
    code += "from ztw.cli.app import app; app(['predict', 'image.png', '--network', 'network'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 image: " in done.stdout


def test_import_ztw_is_fast():
    def seconds(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - started

    assert min(seconds("import ztw") for _ in range(5)) - min(seconds("pass") for _ in range(5)) < 0.3


def test_it_is_typed():
    assert (ROOT / "ztw/py.typed").read_text() == ""


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    for package in ("pandas", "pyarrow", "onnxscript", "snakemake"):
        monkeypatch.setitem(sys.modules, package, None)
    option = Option("model", "model", accuracy=0.5, round_ms=(1.0,))
    end = "is not installed; pip install 'ztw[workflow]'"
    with pytest.raises(ztw.ZtwError) as caught:
        Advice((option,), option, "", 1, "").to_frame()
    assert str(caught.value) == f"Advice.to_frame: the package pandas {end}"
    known = (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ztw.ZtwError) as caught:
        ztw.write_predictions(tmp_path / "a.parquet", known, known, cost=[1, 2], base_cost=2)
    assert str(caught.value) == f"{tmp_path}/a.parquet: the package pyarrow {end}"
    with pytest.raises(ztw.ZtwError, match=r"^studies: the package pandas is not installed"):
        need("studies", "workflow")
    assert missing("workflow") == ["pandas", "pyarrow", "snakemake"]
    assert (missing("onnx"), missing("text")) == (["onnxscript"], [])
    assert (extra_of("onnx"), extra_of("numpy")) == ("onnx", None)
